"""What a job's longest batch took before its first step."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0015_probe_jobs"
down_revision = "0014_plan_jobs"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("probe", postgresql.JSONB(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "probe")
