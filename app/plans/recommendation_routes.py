"""/v1/fine_tuning/recommendations"""

from fastapi import APIRouter

from app.errors import InvalidRequest
from app.http import CallerDep, SessionDep
from app.planning.recommendation import recommend
from app.planning.situations import Situation
from app.plans import bases, classes, recommendations
from app.plans.recommendation_schemas import RecommendationAsked, RecommendationRead

router = APIRouter(prefix="/v1/fine_tuning/recommendations", tags=["planning"])


@router.post("")
def recommend_training(asked: RecommendationAsked, caller: CallerDep, session: SessionDep) -> RecommendationRead:
    """Recommend method, tuning and numbers for a goal, each with its reason and source; nothing is trained."""
    with session.begin():
        model = bases.known(session, caller, asked.model)
        if model.adapter is not None:
            raise InvalidRequest(
                f"'{asked.model}' is an adapter, which goes on training as it is. Ask about its base,"
                f" '{model.adapter.base['id']}'.",
                param="model",
            )
        named = asked.training_file
        data = recommendations.of_file(session, caller, named, model) if named is not None else asked.data
        given = asked.gpu_memory_gb
        hardware = classes.known(session) if given is None else classes.of_sizes(given)
    situation = Situation(
        goal=asked.goal,
        priority=asked.priority,
        rows=data.rows,
        tokens=data.tokens,
        longest_row=data.longest_row,
        rows_are=data.rows_are,
        has_grader=asked.grader,
        base=model.base,
        hardware=hardware,
    )
    return RecommendationRead.of(asked, data, hardware, recommend(situation))
