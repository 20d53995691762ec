import pytest
from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_platform.answering.prompts import Message, Prompts, retrieval_text

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m.role }}> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def base(stories):
    return load_base(stories, task="causal-lm")


def turns(*texts):
    return [Message(role=("user", "assistant")[n % 2], text=text) for n, text in enumerate(texts)]


def test_a_text_stands_behind_the_first_token_as_in_training(base):
    found = Prompts(base, 64).tokens("the old ship")
    plain = base.tokenizer("the old ship", add_special_tokens=False)["input_ids"]
    assert found == (base.tokenizer.bos_token_id, *plain)


def test_a_conversation_without_a_template_is_joined_plainly(base):
    prompts = Prompts(base, 64)
    found = prompts.tokens([Message(role="system", text="be kind"), *turns("hi", "yes", "why")])
    assert found == prompts.tokens(
        "system: be kind\n\nuser: hi\n\nassistant: yes\n\nuser: why\n\nassistant:"
    )


def test_a_conversation_goes_into_the_tokenizers_template(base):
    prompts = Prompts(base, 64)
    prompts._tokenizer.chat_template = TEMPLATE
    found = prompts.tokens(turns("hi", "yes", "why"))
    expected = base.tokenizer(
        "<user> hi <assistant> yes <user> why <assistant>", add_special_tokens=False
    )
    assert list(found) == expected["input_ids"]
    with pytest.raises(InputError, match="no system"):
        prompts.tokens([Message(role="system", text="x")])


def test_what_is_no_prompt_is_refused(base):
    prompts = Prompts(base, 4)
    for prompt in ("\ud800", "x" * 1025, [], [Message(role="user", text="a")] * 1025):
        with pytest.raises(InputError) as caught:
            prompts.tokens(prompt)
        assert len(str(caught.value)) < 200
    with pytest.raises(InputError):
        Message(role="tool", text="x")


def test_a_conversation_is_retrieved_for_by_what_the_user_said_newest_first():
    assert retrieval_text("as it is ") == "as it is "
    assert retrieval_text(turns("first", "answer", "second")) == "second\nfirst"
