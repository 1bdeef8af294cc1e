"""What a job was planned to take."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0014_plan_jobs"
down_revision = "0013_fetch_files"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("plan", postgresql.JSONB(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "plan")
