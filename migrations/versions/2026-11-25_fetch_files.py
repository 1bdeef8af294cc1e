"""Files may be fetched from a source; until they have arrived they are `uploaded`."""

import sqlalchemy as sa
from alembic import op

revision = "0013_fetch_files"
down_revision = "0012_create_file_reports"


def upgrade() -> None:
    op.add_column("files", sa.Column("source", sa.String(), nullable=True))
    op.drop_constraint(op.f("ck_files_known_status"), "files")
    op.create_check_constraint(op.f("ck_files_known_status"), "files", "status IN ('uploaded', 'processed', 'error')")
    op.create_check_constraint(
        op.f("ck_files_uploaded_from_a_source"), "files", "status <> 'uploaded' OR source IS NOT NULL"
    )


def downgrade() -> None:
    op.execute("DELETE FROM files WHERE status = 'uploaded'")
    op.drop_constraint(op.f("ck_files_uploaded_from_a_source"), "files")
    op.drop_constraint(op.f("ck_files_known_status"), "files")
    op.create_check_constraint(op.f("ck_files_known_status"), "files", "status IN ('processed', 'error')")
    op.drop_column("files", "source")
