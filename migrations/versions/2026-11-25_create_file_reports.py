"""Reports on files, previews of rows, and the sets of tokenised rows behind both."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012_create_file_reports"
down_revision = "0011_index_what_is_swept"

JSONB = postgresql.JSONB(none_as_null=True)
NOW = sa.text("now()")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "prepared_sets",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("training_sha256", sa.String(), nullable=False),
        sa.Column("validation_sha256", sa.String(), nullable=True),
        sa.Column("report", JSONB, nullable=False),
        sa.Column("findings_sha256", sa.String(), nullable=False),
        sa.Column("findings_bytes", sa.BigInteger(), nullable=False),
        sa.Column("blobs", JSONB, nullable=False),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("used_at", TIME, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_prepared_sets")),
    )
    op.create_index("ix_prepared_sets_files", "prepared_sets", ["training_sha256", "validation_sha256"])
    op.create_index("ix_prepared_sets_used", "prepared_sets", ["used_at"])
    op.create_index("ix_prepared_sets_blobs", "prepared_sets", ["blobs"], postgresql_using="gin")
    op.create_table(
        "file_reports",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("file_id", sa.String(), nullable=False),
        sa.Column("validation_file_id", sa.String(), nullable=True),
        sa.Column("request", JSONB, nullable=False),
        sa.Column("request_sha256", sa.String(), nullable=False),
        sa.Column("set_key", sa.String(), nullable=True),
        sa.Column("error", JSONB, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (set_key IS NOT NULL OR error IS NOT NULL)",
            name=op.f("ck_file_reports_finished_with"),
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_file_reports_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["file_id"], ["files.id"], name=op.f("fk_file_reports_file_id_files"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["validation_file_id"],
            ["files.id"],
            name=op.f("fk_file_reports_validation_file_id_files"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["set_key"],
            ["prepared_sets.key"],
            name=op.f("fk_file_reports_set_key_prepared_sets"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_reports")),
        sa.UniqueConstraint("file_id", "request_sha256", name=op.f("uq_file_reports_file_id")),
    )
    op.create_index("ix_file_reports_set", "file_reports", ["set_key"])
    op.create_index(
        "ix_file_reports_pending", "file_reports", ["project_id"], postgresql_where=sa.text("finished_at IS NULL")
    )
    op.create_table(
        "file_previews",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("report_id", sa.String(), nullable=False),
        sa.Column("asked", JSONB, nullable=False),
        sa.Column("asked_sha256", sa.String(), nullable=False),
        sa.Column("rows", JSONB, nullable=True),
        sa.Column("error", JSONB, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (rows IS NOT NULL OR error IS NOT NULL)",
            name=op.f("ck_file_previews_finished_with"),
        ),
        sa.ForeignKeyConstraint(
            ["report_id"], ["file_reports.id"], name=op.f("fk_file_previews_report_id_file_reports"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_file_previews")),
        sa.UniqueConstraint("report_id", "asked_sha256", name=op.f("uq_file_previews_report_id")),
    )


def downgrade() -> None:
    op.drop_table("file_previews")
    op.drop_table("file_reports")
    op.drop_table("prepared_sets")
