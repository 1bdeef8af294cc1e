"""Made-up messages to a shop's support, and the JSON that a clerk would file them under: the demo's task."""

import json
import random
from typing import Any

SYSTEM = "File as JSON: category, product, order, urgent."

PRODUCTS = [
    *("kettle", "toaster", "desk lamp", "headphones", "keyboard", "backpack", "office chair", "blender", "monitor"),
    *("vacuum cleaner", "coffee grinder", "tent", "bicycle pump", "sleeping bag", "water bottle", "router"),
]
COMPLAINTS = {
    "refund": [
        "I want my money back for the {product} from order {order}.",
        "Please refund order {order}, the {product} is not what I expected.",
        "The {product} in order {order} disappointed me. How do I get a refund?",
    ],
    "delivery": [
        "Where is my {product}? Order {order} should have arrived last week.",
        "Order {order} has not come yet. I am still waiting for the {product}.",
        "The parcel with my {product} is late, the order number is {order}.",
    ],
    "defect": [
        "The {product} from order {order} stopped working after two days.",
        "My new {product} is broken. It was order {order}.",
        "Order {order}: the {product} is damaged, it has a crack.",
    ],
    "invoice": [
        "I need an invoice for order {order}, one {product}.",
        "Could you send me the receipt for the {product}? The order is {order}.",
        "There is no invoice in the box of order {order} with the {product}.",
    ],
}
OPENINGS = ["", "Hello, ", "Hi there! ", "Good morning. ", "Dear team, "]
URGENT = [" This is urgent.", " It is urgent, please answer today.", " Urgent! I need this solved."]
CALM = ["", " Thank you.", " No hurry.", " Kind regards."]


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Chat rows, no message twice; a prefix of a longer list with the same seed is the shorter one."""
    chance = random.Random(seed)  # noqa: S311  no secret
    made: dict[str, dict[str, Any]] = {}
    while len(made) < count:
        text, answer = _message(chance)
        made.setdefault(text, _row(text, answer))
    return list(made.values())


def expected(row: dict[str, Any]) -> dict[str, Any]:
    """The right answer to a row."""
    answer: dict[str, Any] = json.loads(row["messages"][-1]["content"])
    return answer


def is_json(answer: str) -> bool:
    """Whether an answer is a JSON object."""
    try:
        return isinstance(json.loads(answer), dict)
    except ValueError:
        return False


def is_right(answer: str, row: dict[str, Any]) -> bool:
    """Whether it is the JSON object that was wanted, every key and value."""
    return is_json(answer) and json.loads(answer) == expected(row)


def _message(chance: random.Random) -> tuple[str, dict[str, Any]]:
    category = chance.choice(sorted(COMPLAINTS))
    product, order = chance.choice(PRODUCTS), f"{chance.choice('ABCDEF')}{chance.randrange(1000, 10000)}"
    urgent = chance.random() < 0.4
    body = chance.choice(COMPLAINTS[category]).format(product=product, order=order)
    opening = chance.choice(OPENINGS)
    text = opening + body + chance.choice(URGENT if urgent else CALM)
    return text, {"category": category, "product": product, "order": order, "urgent": urgent}


def _row(text: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": text},
            {"role": "assistant", "content": json.dumps(answer)},
        ]
    }
