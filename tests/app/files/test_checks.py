"""What is said of rows that can be trained on, and what is not."""

import random
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.files.checks import check_row
from app.files.findings import Code, Finding, Place
from app.files.rows import ChatMessage, ChatRow, PreferenceRow, PromptRow, Row, TextPart, TextRow, UnpairedRow

PLACE = Place(3, 7)
SYSTEM = ChatMessage("system", "Be short.")
USER = ChatMessage("user", "What colour?")
ANSWER = ChatMessage("assistant", "Blue.")
RANDOM = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=200))  # noqa: S311  no key


def call(*ids: str | None) -> ChatMessage:
    calls = [{"id": one, "function": {"name": "look", "arguments": "{}"}} for one in ids]
    return ChatMessage("assistant", tool_calls=calls)


def result(of: str | None = None, content: str = "4") -> ChatMessage:
    return ChatMessage("tool", content, tool_call_id=of)


def found(row: Row, code: Code | None = None) -> list[Finding]:
    return [finding for finding in check_row(PLACE, row) if code in {None, finding.code}]


def only(row: Row, code: Code) -> Finding:
    (finding,) = found(row)
    assert finding.code == code
    assert (finding.row, finding.line, finding.severity) == (3, 7, "warning")
    return finding


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ANSWER],
        [SYSTEM, USER, ANSWER, USER, ANSWER],
        [SYSTEM, ChatMessage("developer", "Be kind."), USER, ANSWER],
        [USER, call("a"), result("a"), ANSWER],
        [USER, call("a", "b"), result("b"), result("a"), ANSWER, USER, ANSWER],
        [USER, call("a"), result("a"), call("b"), result("b"), ANSWER],
        [USER, call(None), result(), ANSWER],
        [USER, call("a")],
        [USER, ANSWER, ChatMessage("function", "4", name="look"), ANSWER],
    ],
)
def test_a_conversation_in_order_is_passed_over(messages: list[ChatMessage]) -> None:
    assert found(ChatRow(messages), Code.BAD_ORDER) == []


@pytest.mark.parametrize(
    ("messages", "field", "says"),
    [
        ([USER, SYSTEM, ANSWER], "messages[1]", "is a system message in the midst"),
        ([USER, ChatMessage("developer", "Be kind."), ANSWER], "messages[1]", "is a developer message in the midst"),
        ([USER, USER, ANSWER], "messages[1]", "is a second user message in a row"),
        ([USER, ANSWER, ANSWER], "messages[2]", "is a second assistant message in a row"),
        ([ANSWER, USER, ANSWER], "messages[0]", "answers nothing"),
        ([SYSTEM, ANSWER], "messages[1]", "answers nothing"),
        ([USER, ANSWER, USER], "messages[2]", "nothing is learnt from it"),
        ([USER, result("a"), ANSWER], "messages[1]", "without a call"),
        ([USER, call("a"), result("b"), result("a"), ANSWER], "messages[2]", "without a call"),
        ([USER, call("a"), result("a"), result("a"), ANSWER], "messages[3]", "without a call"),
        ([USER, call("a"), USER, ANSWER], "messages[1]", "without the result"),
        ([USER, call("a", "b"), result("a"), ANSWER], "messages[1]", "without the result"),
        ([USER, call("a"), ANSWER], "messages[1]", "without the result"),
        ([USER, ChatMessage("function", "4"), ANSWER], "messages[1]", "is a function's result without a call"),
    ],
)
def test_roles_out_of_order_are_named_by_their_message(messages: list[ChatMessage], field: str, says: str) -> None:
    finding = only(ChatRow(messages), Code.BAD_ORDER)
    assert finding.field == field
    assert finding.message.startswith(field)
    assert says in finding.message


def test_a_rule_that_is_broken_many_times_is_said_once_a_row() -> None:
    assert only(ChatRow([USER, ANSWER, *[USER] * 50, ANSWER]), Code.BAD_ORDER).field == "messages[3]"
    assert len(found(ChatRow([USER, USER, ANSWER, ANSWER, SYSTEM, ANSWER]))) == 3


def test_prompt_and_answer_are_read_as_one_conversation() -> None:
    assert found(PromptRow([SYSTEM, USER], [ANSWER])) == []
    assert only(PromptRow([USER, ANSWER], [ANSWER]), Code.BAD_ORDER).field == "completion[0]"
    assert only(PreferenceRow([USER], [ANSWER], [USER, ANSWER]), Code.BAD_ORDER).field == "rejected[0]"
    assert only(UnpairedRow([USER, USER], [ANSWER], True), Code.BAD_ORDER).field == "prompt[1]"
    assert found(PromptRow("What colour?", "Blue.")) == []


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (TextRow(" \n\t"), "text"),
        (PromptRow("", "Blue."), "prompt"),
        (PromptRow("What colour?", " \n"), "completion"),
        (PreferenceRow("What colour?", "Blue.", "  "), "rejected"),
        (ChatRow([ChatMessage("user", None), ANSWER]), "messages[0].content"),
        (ChatRow([ChatMessage("user", [TextPart("text", " ")]), ANSWER]), "messages[0].content"),
        (ChatRow([ChatMessage("system", ""), USER, ANSWER]), "messages[0].content"),
        (ChatRow([USER, call("a"), result("a", ""), ANSWER]), "messages[2].content"),
        (ChatRow([USER, ChatMessage("assistant", " ")]), "messages[1].content"),
        (ChatRow([USER, ChatMessage("assistant", "", weight=0), USER, ANSWER]), "messages[1].content"),
    ],
)
def test_what_has_no_words_is_named(row: Row, field: str) -> None:
    assert only(row, Code.EMPTY_CONTENT).field == field


def test_an_answer_without_a_character_is_left_to_the_errors() -> None:
    assert found(TextRow("")) == []
    assert found(PromptRow("What colour?", "")) == []
    assert found(ChatRow([USER, ChatMessage("assistant", "")])) == []


ORDINARY = [
    "L’été dernier, Élodie est allée à Évian… « Voilà\N{NO-BREAK SPACE}», dit-elle au CAFÉ… et au CAFÉ» – à peu près",
    "Die Straße, „Müßiggang“, 25\N{NO-BREAK SPACE}°C, groß\N{NO-BREAK SPACE}genug, Fuß¹, 15 Å², 3 Å·mol, PÅ…",
    "Não há razão. IRMÃ… MANHÃ” São Paulo, AÇÃO, ¿Dónde está el niño? ¡Mañana!",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň. Árvíztűrő tükörfúrógép. Şimdi İstanbul'da güneşli ığ.",
    "Привет, как дела? Ёлка — это «дерево». Їжак і ґанок. Καλημέρα κόσμε.",
    "你好,世界。今天天气很好! こんにちは世界。안녕하세요 세계. สวัสดีชาวโลก. नमस्ते दुनिया. مرحبا بالعالم. שלום",
    "می\N{ZERO WIDTH NON-JOINER}خواهم, សួស្តី\N{ZERO WIDTH SPACE}ពិភពលោក, VIỆT NAM ĐÃ… Það er gott að búa á Íslandi.",
    "Great 👍🏽, family 👨\N{ZERO WIDTH JOINER}👩\N{ZERO WIDTH JOINER}👧, ❤️, €5 ™ “quoted” – it’s ½ ± 3·y ≤ x² → ∞",
    "def f(x: int) -> int:\r\n\treturn x ** 2  # O(n²)\n\n@app.route('/')\nfor i in range(10): print(f'{i}: {x[i]}')",
    "Sum: 68940000 + 1646615806005 = 960397912423686 +960397912423686 and 12 +34567890123 = x; 3.14159265358979",
    "Order 4929 1302 8475 6018 of 2024-01-15 12:30:45, id 1700000000000000, phone +1 (555) 867-5309, +49 123 456 7890",
    "GB82 WEST 1234 5698 7654 33 is no account, DE00 0000 0000 0000 0000 00 neither; key ABCD12EFGH34IJKL56MN",
    "Write to user@example.com, you@yourdomain.com, john@mail.example.org, a@b.test; see logo@2x.png, @somebody",
    "git clone git@github.com:org/repo.git; ftp://anna:password@ftp.firma-nord.de; actions/checkout@v3; lodash@4.17",
    "password = 'your_email_password'; token = os.environ['TOKEN1']; secret=client_secret; api_key: <API_KEY_1>",
    "password = abababab12, token: a1a1a1a1a1a1, api_key=0000000a",
    "The password: it must have 8 characters. max_tokens: 40960000, tokenizer: gpt2-tokenizer-v12, key: config1.key",
    "token = refreshed_token_v2; password: MyPassword2024; api_key = config2.section7.value; secret: see RFC 9106, 4.1",
    "sk-toggleable__content and sk-container-item-of-this-long-list, hf_model_name, AKIAIOSFODNN7EXAMPLE, ghp_xxxxxxxx",
    "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY----- goes into key.pem; eyJhbGciOi is how a JWT begins",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_passed_over(text: str) -> None:
    assert found(TextRow(text)) == []
    assert found(ChatRow([ChatMessage("user", text), ChatMessage("assistant", text)])) == []


def as_1252(text: str) -> str:
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a\0b", r"U+0000 in 'a\x00b'"),
        ("\x1b[31mred", "U+001B"),
        ("the quote\x92s", "U+0092"),
        ("\x0crac{1}{2}", "U+000C"),
        ("my mother\N{REPLACEMENT CHARACTER}s", r"U+FFFD in 'my mother\ufffds'"),
        ("\ufeffname", "U+FEFF"),
        ("a 35\ufeff/", "U+FEFF"),
        ("Church \N{ZERO WIDTH SPACE}in Burford", "U+200B"),
        (as_1252("café"), "'Ã©' where 'é' was meant"),
        ("café".encode().decode("latin-1"), "'Ã©' where 'é' was meant"),
        ("ÉCOLE".encode().decode("latin-1"), r"'Ã\x89' where 'É' was meant"),
        (as_1252("it’s"), "'â€™' where '’' was meant"),
        (as_1252("25 °C"), "'Â°' where '°' was meant"),
        (as_1252("Müller"), "'Ã¼' where 'ü' was meant"),
        (as_1252("voilà !"), r"'Ã\xa0' where 'à' was meant"),
        (as_1252("MAÑANA"), "'Ã‘' where 'Ñ' was meant"),
        (as_1252("książka"), "'Ä…Å¼' where 'ąż' was meant"),
        (as_1252("Привет"), "where 'Привет' was meant"),
        (as_1252("世界"), "where '世界' was meant"),
        (as_1252("so 😀"), "where '😀' was meant"),
        (as_1252("x → y"), "'â†’' where '→' was meant"),
    ],
)
def test_characters_out_of_place_are_shown_escaped(text: str, says: str) -> None:
    row = ChatRow([USER, ChatMessage("assistant", text)])
    finding = only(row, Code.ODD_CHARACTERS)
    assert finding.field == "messages[1].content"
    assert says in finding.message
    assert finding.message.isprintable()


def test_of_each_kind_of_odd_character_a_row_has_one_finding() -> None:
    text = f"\0 \1 \ufeff \ufeff {as_1252('é ü')} \N{REPLACEMENT CHARACTER}"
    findings = found(ChatRow([ChatMessage("user", text), ChatMessage("assistant", text)]))
    assert [finding.field for finding in findings] == ["messages[0].content"] * 4


# Put together here: none of them is a key, and a scanner of this file shall not say so either.
SECRETS = {
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + RANDOM + "\n-----END",
    "an AWS access key": "AKIA" + "QWERTY2345ZXCVBN",
    "a GitHub token": "ghp_" + RANDOM[:36],
    "a GitLab token": "glpat-" + RANDOM[:20],
    "a Slack token": "xoxb-" + "273849506172-" + RANDOM[:24],
    "a Slack webhook": "https://hooks.slack.com/services/" + "T0A1B2C3D/B0A1B2C3D/" + RANDOM[:24],
    "a Stripe key": "sk_live_" + RANDOM[:24],
    "an Anthropic key": "sk-ant-" + "api03-" + RANDOM[:90],
    "an OpenAI key": "sk-proj-" + RANDOM[:80],
    "a Google key": "AIza" + RANDOM[:35],
    "a Hugging Face token": "hf_" + RANDOM[:34],
    "a JSON web token": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiI3MzUifQ." + RANDOM[:43],
    "an address with a password": "postgres://anna:" + RANDOM[:12] + "@db.internal:5432/shop",
}


@pytest.mark.parametrize(("kind", "secret"), SECRETS.items())
@pytest.mark.parametrize("around", ["{}", "Use this: {}.\nThen go on.", '{{"api_key": "{}"}}', "export TOKEN={}"])
def test_a_secret_is_named_by_its_kind_and_never_quoted(kind: str, secret: str, around: str) -> None:
    row = ChatRow([USER, ChatMessage("assistant", around.format(secret))])
    (finding,) = found(row, Code.SECRET)
    assert kind in finding.message
    assert finding.field == "messages[1].content"
    assert secret[:5] not in finding.message
    assert not any(RANDOM[start : start + 5] in finding.message for start in range(20))


@pytest.mark.parametrize(
    "line",
    [
        "api_key: {}",
        '"token": "{}",',
        "export DB_PASSWORD={}",
        r"{{\"secret\": \"{}\"}}",
        "$password = '{}';",
        "'aws_secret_access_key' => '{}'",
        "PWD := {}",
    ],
)
def test_what_is_assigned_to_a_password_is_a_secret(line: str) -> None:
    finding = only(TextRow(line.format(RANDOM[10:34])), Code.SECRET)
    assert not any(RANDOM[start : start + 3] in finding.message for start in range(10, 31))


def test_secrets_in_the_arguments_of_a_call_are_seen() -> None:
    calls: list[dict[str, Any]] = [
        {"id": "a", "function": {"name": "log_in", "arguments": '{"token": "Zq7!fQ29sLx0"}'}}
    ]
    row = ChatRow([USER, ChatMessage("assistant", tool_calls=calls)])
    assert only(row, Code.SECRET).field == "messages[1].tool_calls[0].function.arguments"


@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_secrets_in_an_answers_thoughts_are_seen(field: str) -> None:
    thoughts: dict[str, Any] = {field: "The token: Zq7!fQ29sLx0"}
    row = ChatRow([USER, ChatMessage("assistant", "Blue.", **thoughts)])
    assert only(row, Code.SECRET).field == f"messages[1].{field}"


@pytest.mark.parametrize(
    ("kind", "datum"),
    [
        ("an e-mail address", "anna.k+shop@firma-nord.de"),
        ("an e-mail address", "x_y@students.uni.ac.uk"),
        ("a telephone number", "+49 30 8173 4926"),
        ("a telephone number", "+1 (415) 867-5309"),
        ("a telephone number", "+4915784930217"),
        ("the number of a card", "4929 1302 8475 6017"),
        ("the number of a card", "5424180279791732"),
        ("the number of a card", "3714-496353-98456"),
        ("the number of a bank account", "DE89 3704 0044 0532 0130 00"),
        ("the number of a bank account", "GB29NWBK60161331926819"),
    ],
)
def test_personal_data_are_named_by_their_kind_and_never_quoted(kind: str, datum: str) -> None:
    for text in (datum, f"It is {datum}.", f"({datum}), please"):
        finding = only(TextRow(text), Code.PERSONAL_DATA)
        assert kind in finding.message
        assert datum[:3] not in finding.message


@pytest.mark.parametrize("start", ["-eyJ", "sk-", "a@", "+1", "://a:", "password=", "-----BEGIN ", "é", "Ã©", "4111 "])
def test_long_texts_take_linear_time(start: str) -> None:
    # A pattern that looks at each place as far as the end would take minutes here, and the suite's timeout is five.
    check_row(PLACE, TextRow(start * 50_000))
    check_row(PLACE, TextRow(start + "a1" * 100_000))


TEXTS = (
    st.text()
    | st.text(st.sampled_from(list("Ãâ€©ðŸ+@.:/=-_ 0149aZ\0\n\ufeff\N{ZERO WIDTH SPACE}")))
    | st.sampled_from(ORDINARY)
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {}, optional={"id": st.text() | st.none(), "function": st.none() | st.fixed_dictionaries({"arguments": TEXTS})}
    )
)
MESSAGES = st.lists(
    st.builds(
        ChatMessage,
        role=st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
        content=st.none() | TEXTS | st.lists(st.builds(TextPart, st.just("text"), TEXTS)),
        weight=st.sampled_from([None, 0, 1]),
        tool_calls=st.none() | CALLS,
        tool_call_id=st.none() | st.text(),
    )
)
PARTS = TEXTS | MESSAGES
ROWS = (
    st.builds(ChatRow, MESSAGES)
    | st.builds(PromptRow, PARTS, PARTS)
    | st.builds(TextRow, TEXTS)
    | st.builds(PreferenceRow, PARTS, PARTS, PARTS)
    | st.builds(UnpairedRow, PARTS, PARTS, st.booleans())
)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_no_row_is_beyond_checking(row: Row) -> None:
    for finding in check_row(PLACE, row):
        assert finding.severity == "warning"
        assert finding.field
        assert finding.message.startswith(finding.field)
        assert finding.message.isprintable()
