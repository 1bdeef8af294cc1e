"""Plans that were made, and the dry runs behind them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016_create_plans"
down_revision = "0015_probe_jobs"

JSONB = postgresql.JSONB(none_as_null=True)
NOW = sa.text("now()")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "dry_runs",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("asked", JSONB, nullable=False),
        sa.Column("found", JSONB, nullable=True),
        sa.Column("error", JSONB, nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (found IS NOT NULL OR error IS NOT NULL)",
            name=op.f("ck_dry_runs_finished_with"),
        ),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_dry_runs")),
    )
    op.create_index("ix_dry_runs_pending", "dry_runs", ["key"], postgresql_where=sa.text("finished_at IS NULL"))
    op.create_index("ix_dry_runs_created", "dry_runs", ["created_at"])
    op.create_table(
        "plans",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=True),
        sa.Column("answer", JSONB, nullable=True),
        sa.Column("dry_run_key", sa.String(), nullable=True),
        sa.Column("created_at", TIME, server_default=NOW, nullable=False),
        sa.CheckConstraint("(job_id IS NULL) = (answer IS NOT NULL)", name=op.f("ck_plans_answer_unless_a_job_has_it")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_plans_project_id_projects")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_plans_job_id_jobs"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(
            ["dry_run_key"], ["dry_runs.key"], name=op.f("fk_plans_dry_run_key_dry_runs"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_plans")),
    )
    op.create_index("ix_plans_dry_run", "plans", ["dry_run_key"])
    op.create_index("ix_plans_created", "plans", ["created_at"])


def downgrade() -> None:
    op.drop_table("plans")
    op.drop_table("dry_runs")
