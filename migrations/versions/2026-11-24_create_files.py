"""Uploaded files."""

import sqlalchemy as sa
from alembic import op

revision = "0002_create_files"
down_revision = "0001_create_projects"


def upgrade() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("filename", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("status_details", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status_details IS NOT NULL) = (status = 'error')", name=op.f("ck_files_details_when_error")
        ),
        sa.CheckConstraint("status IN ('processed', 'error')", name=op.f("ck_files_known_status")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_files_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_files")),
        sa.UniqueConstraint("seq", name=op.f("uq_files_seq")),
    )
    op.create_index("ix_files_project", "files", ["project_id", "seq"], unique=False)
    op.create_index("ix_files_sha256", "files", ["sha256"], unique=False)


def downgrade() -> None:
    op.drop_table("files")
