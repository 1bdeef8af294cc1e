"""What a job waits for that is paused for want of space, and the room that its next attempt needs."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020_pause_for_space"
down_revision = "0019_count_attempts"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("lack", postgresql.JSONB(none_as_null=True), nullable=True))
    # One way only: a version that does not know the column resumes a job and leaves it what it is.
    op.create_check_constraint(
        op.f("ck_jobs_lack_when_no_space"), "jobs", "paused_by IS DISTINCT FROM 'no_space' OR lack IS NOT NULL"
    )
    op.add_column("work", sa.Column("room_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("work", "room_bytes")
    op.drop_constraint(op.f("ck_jobs_lack_when_no_space"), "jobs")
    op.execute("UPDATE jobs SET paused_by = 'user' WHERE paused_by = 'no_space'")
    op.drop_column("jobs", "lack")
