"""Whose work it is, when it was last claimed, and how long it should take: what a queue is shared by."""

import sqlalchemy as sa
from alembic import op

revision = "0018_share_queues"
down_revision = "0017_create_resume_states"

OWNED = ("jobs", "files", "file_reports")
"""Whose rows are subjects of work and know their project."""


def upgrade() -> None:
    # A version that does not know the column enters work of no project, which has a share of its own.
    op.add_column("work", sa.Column("project_id", sa.String(), server_default="", nullable=False))
    op.add_column("work", sa.Column("claimed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("work", sa.Column("seconds_low", sa.Float(), nullable=True))
    op.add_column("work", sa.Column("seconds_high", sa.Float(), nullable=True))
    for table in OWNED:
        op.execute(
            f"UPDATE work SET project_id = {table}.project_id FROM {table}"  # noqa: S608  names from above
            f" WHERE {table}.id = work.subject AND work.finished_at IS NULL"
        )
    op.create_index(
        "ix_work_turns",
        "work",
        ["queue", "priority", "project_id", "available_at", "id"],
        postgresql_where=sa.text("status = 'queued'"),
    )
    op.create_index("ix_work_running", "work", ["project_id", "queue"], postgresql_where=sa.text("status = 'running'"))
    op.create_index(
        "ix_work_claimed",
        "work",
        ["queue", "project_id", "claimed_at"],
        postgresql_where=sa.text("claimed_at IS NOT NULL"),
    )
    op.drop_index("ix_work_claim", table_name="work")


def downgrade() -> None:
    op.create_index("ix_work_claim", "work", ["queue", "priority", "id"], postgresql_where=sa.text("status = 'queued'"))
    for name in ("ix_work_claimed", "ix_work_running", "ix_work_turns"):
        op.drop_index(name, table_name="work")
    for name in ("seconds_high", "seconds_low", "claimed_at", "project_id"):
        op.drop_column("work", name)
