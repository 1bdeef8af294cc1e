"""What the sweeper looks for every few seconds is found without reading whole tables."""

import sqlalchemy as sa
from alembic import op

revision = "0011_index_what_is_swept"
down_revision = "0010_create_permissions"

INDEXES = (
    ("ix_jobs_unfinished", "jobs", "seq", "finished_at IS NULL"),
    ("ix_files_deleted", "files", "deleted_at", "deleted_at IS NOT NULL"),
    ("ix_files_expires", "files", "expires_at", "deleted_at IS NULL"),
    ("ix_registered_models_deleted", "registered_models", "deleted_at", "deleted_at IS NOT NULL"),
    ("ix_webhook_deliveries_over", "webhook_deliveries", "created_at", "status <> 'pending'"),
)


def upgrade() -> None:
    for name, table, column, condition in INDEXES:
        op.create_index(name, table, [column], postgresql_where=sa.text(condition))


def downgrade() -> None:
    for name, table, _, _ in reversed(INDEXES):
        op.drop_index(name, table_name=table)
