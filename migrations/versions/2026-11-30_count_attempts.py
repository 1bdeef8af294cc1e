"""What attempts came to in all, how long each was at what, and what devices are used for: figures for /metrics."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019_count_attempts"
down_revision = "0018_share_queues"


def upgrade() -> None:
    json = postgresql.JSONB(none_as_null=True)
    op.add_column("attempts", sa.Column("phases", json, server_default="{}", nullable=False))
    # What has ended before is not counted: a million of them would be a burst that never was.
    op.add_column("attempts", sa.Column("counted", sa.Boolean(), server_default="true", nullable=False))
    op.alter_column("attempts", "counted", server_default="false")
    op.execute("UPDATE attempts SET counted = false WHERE ended_at IS NULL")
    op.create_index(
        "ix_attempts_uncounted",
        "attempts",
        ["work_id", "number"],
        postgresql_where=sa.text("ended_at IS NOT NULL AND NOT counted"),
    )
    op.create_table(
        "attempt_totals",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("queue", sa.String(), nullable=False),
        sa.Column("measure", sa.String(), nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("count", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "queue", "measure", "label", "bucket", name=op.f("pk_attempt_totals")),
    )
    op.add_column("workers", sa.Column("usage", json, server_default="{}", nullable=False))
    op.create_index("ix_jobs_status", "jobs", ["status"])


def downgrade() -> None:
    op.drop_index("ix_jobs_status", table_name="jobs")
    op.drop_column("workers", "usage")
    op.drop_table("attempt_totals")
    op.drop_index("ix_attempts_uncounted", table_name="attempts")
    op.drop_column("attempts", "counted")
    op.drop_column("attempts", "phases")
