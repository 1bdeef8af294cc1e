"""Checkpoints in the storage, as training goes on from them on any worker."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017_create_resume_states"
down_revision = "0016_create_plans"

JSONB = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "resume_states",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("files", JSONB, nullable=False),
        sa.Column("manifest_sha256", sa.String(), nullable=True),
        sa.Column("created_at", TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", TIME, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_resume_states_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_resume_states")),
        sa.UniqueConstraint("job_id", "step", "attempt", name=op.f("uq_resume_states_job_id")),
    )
    op.create_index("ix_resume_states_files", "resume_states", ["files"], postgresql_using="gin")


def downgrade() -> None:
    op.drop_table("resume_states")
