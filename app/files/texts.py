"""What a row says: its texts, each with its field, and its conversations."""

from app.files.rows import ChatMessage, ChatRow, GradedRow, PreferenceRow, PromptRow, Row, TextRow, UnpairedRow

Field = str
"""Where in the row, such as `messages[2].content`."""


def texts(row: Row) -> list[tuple[Field, str]]:
    """Everything in it that a person or a model wrote, thoughts and tool calls' arguments too."""
    said = []
    for name, part in parts(row):
        if isinstance(part, str):
            said.append((name, part))
        else:
            for number, message in enumerate(part):
                said.append((f"{name}[{number}].content", message.text))
                if message.reasoning_content:
                    said.append((f"{name}[{number}].reasoning_content", message.reasoning_content))
                if message.thinking:
                    said.append((f"{name}[{number}].thinking", message.thinking))
                if message.tool_calls:
                    said += _arguments(f"{name}[{number}]", message)
    return said


def parts(row: Row) -> list[tuple[Field, str | list[ChatMessage]]]:
    """What it consists of, by the fields' names, in their order."""
    match row:
        case ChatRow() | GradedRow():
            return [("messages", row.messages)]
        case PromptRow() | UnpairedRow():
            return [("prompt", row.prompt), ("completion", row.completion)]
        case PreferenceRow():
            return [("prompt", row.prompt), ("chosen", row.chosen), ("rejected", row.rejected)]
        case TextRow():
            return [("text", row.text)]


def conversations(row: Row) -> list[list[tuple[Field, list[ChatMessage]]]]:
    """What a model sees as one conversation, in its parts: of a preference two of them, of plain texts none."""
    prompt, *answers = [[(name, part)] if isinstance(part, list) else [] for name, part in parts(row)]
    return [prompt + answer for answer in answers] or [prompt]


def _arguments(field: Field, message: ChatMessage) -> list[tuple[Field, str]]:
    functions = [call.get("function") for call in message.tool_calls or []]
    return [
        (f"{field}.tool_calls[{number}].function.arguments", function["arguments"])
        for number, function in enumerate(functions)
        if isinstance(function, dict) and isinstance(function.get("arguments"), str)
    ]
