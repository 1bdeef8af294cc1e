"""What trainers print, and tokens for those who follow a job from a browser."""

import sqlalchemy as sa
from alembic import op

revision = "0007_create_job_logs"
down_revision = "0006_create_job_checkpoints"


def upgrade() -> None:
    op.create_table(
        "job_logs",
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_logs_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_job_logs")),
    )
    op.create_index("ix_job_logs_job", "job_logs", ["job_id", "seq"], unique=False)
    op.create_table(
        "stream_tokens",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_stream_tokens_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_stream_tokens")),
    )


def downgrade() -> None:
    op.drop_table("stream_tokens")
    op.drop_table("job_logs")
