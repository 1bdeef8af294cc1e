"""Projects may use models of others."""

import sqlalchemy as sa
from alembic import op

revision = "0010_create_permissions"
down_revision = "0009_create_webhooks"


def upgrade() -> None:
    op.create_table(
        "checkpoint_permissions",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("project_id", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["model"],
            ["registered_models.id"],
            name=op.f("fk_checkpoint_permissions_model_registered_models"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_checkpoint_permissions_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_checkpoint_permissions")),
        sa.UniqueConstraint("model", "project_id", name=op.f("uq_checkpoint_permissions_model")),
        sa.UniqueConstraint("seq", name=op.f("uq_checkpoint_permissions_seq")),
    )
    op.create_index("ix_checkpoint_permissions_project", "checkpoint_permissions", ["project_id"], unique=False)


def downgrade() -> None:
    op.drop_table("checkpoint_permissions")
