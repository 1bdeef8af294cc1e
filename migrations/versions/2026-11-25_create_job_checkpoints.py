"""Jobs pause, repeat no request, and leave checkpoints that are models."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006_create_job_checkpoints"
down_revision = "0005_create_registered_models"

JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
PAUSABLE = {
    "jobs": "status IN ('validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')",
    "work": "status IN ('queued', 'paused', 'running', 'succeeded', 'failed', 'cancelled')",
}
BEFORE = {
    "jobs": "status IN ('validating_files', 'queued', 'running', 'succeeded', 'failed', 'cancelled')",
    "work": "status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')",
}


def upgrade() -> None:
    _know(PAUSABLE)
    op.add_column("jobs", sa.Column("paused_by", sa.String(), nullable=True))
    op.create_check_constraint(
        op.f("ck_jobs_paused_by_somebody"), "jobs", "(paused_by IS NOT NULL) = (status = 'paused')"
    )
    op.add_column("jobs", sa.Column("result_files", JSON, server_default="[]", nullable=False))
    op.add_column("jobs", sa.Column("request_sha256", sa.String(), nullable=True))
    op.add_column("jobs", sa.Column("idempotency_key", sa.String(), nullable=True))
    op.create_unique_constraint(op.f("uq_jobs_project_id"), "jobs", ["project_id", "idempotency_key"])
    op.create_index("ix_jobs_request", "jobs", ["project_id", "request_sha256", "seq"], unique=False)
    op.create_index(
        "ix_jobs_metadata",
        "jobs",
        [sa.text("(spec -> 'metadata')")],
        unique=False,
        postgresql_using="gin",
    )
    op.add_column("registered_models", sa.Column("step", sa.Integer(), nullable=True))
    op.add_column("registered_models", sa.Column("parent", sa.String(), nullable=True))
    op.add_column("registered_models", sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint("uq_registered_models_job_id", "registered_models")
    op.create_unique_constraint(
        op.f("uq_registered_models_job_id"),
        "registered_models",
        ["job_id", "step"],
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "job_checkpoints",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("metrics", JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_job_checkpoints_job_id_jobs"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["model"],
            ["registered_models.id"],
            name=op.f("fk_job_checkpoints_model_registered_models"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job_checkpoints")),
        sa.UniqueConstraint("model", name=op.f("uq_job_checkpoints_model")),
        sa.UniqueConstraint("seq", name=op.f("uq_job_checkpoints_seq")),
    )
    op.create_index("ix_job_checkpoints_job", "job_checkpoints", ["job_id", "seq"], unique=False)


def downgrade() -> None:
    op.drop_table("job_checkpoints")
    op.execute("DELETE FROM registered_models WHERE step IS NOT NULL OR deleted_at IS NOT NULL")
    op.drop_constraint("uq_registered_models_job_id", "registered_models")
    op.create_unique_constraint(op.f("uq_registered_models_job_id"), "registered_models", ["job_id"])
    for column in ("deleted_at", "parent", "step"):
        op.drop_column("registered_models", column)
    op.drop_index("ix_jobs_metadata", "jobs")
    op.drop_index("ix_jobs_request", "jobs")
    op.drop_constraint("uq_jobs_project_id", "jobs")
    op.drop_constraint("ck_jobs_paused_by_somebody", "jobs")
    for column in ("idempotency_key", "request_sha256", "result_files", "paused_by"):
        op.drop_column("jobs", column)
    for table in ("jobs", "work"):  # a paused job waits again
        op.execute(f"UPDATE {table} SET status = 'queued', desired = 'run' WHERE status = 'paused'")  # noqa: S608
        op.execute(f"UPDATE {table} SET desired = 'run' WHERE desired = 'pause'")  # noqa: S608
    _know(BEFORE)


def _know(statuses: dict[str, str]) -> None:
    for table, condition in statuses.items():
        op.drop_constraint(f"ck_{table}_known_status", table)
        op.create_check_constraint(op.f(f"ck_{table}_known_status"), table, condition)
