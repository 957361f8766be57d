"""Signs: what is drawn can be read, what is read is what counts, and words kept for evaluation stay unseen."""

from __future__ import annotations

import numpy as np
import pytest

from demo import letters
from demo.letters import LETTERS, Sign
from demo.tasks import TASKS, spelled


def test_a_drawn_sign_is_read_as_what_it_says() -> None:
    """Else the reward would punish what no model can do better."""
    rng = np.random.default_rng(3)
    asked = [
        *letters.signs(3, 24, held_out=False),
        *(Sign(3 * letter, f'"{letter} {letter} {letter}"') for letter in LETTERS),
    ]
    read = [spelled(np.array(letters.draw_sign(sign, rng)), sign).reward for sign in asked]
    assert np.mean([reward == 1 for reward in read]) > 0.9


def test_each_wrong_letter_costs_a_third() -> None:
    rng = np.random.default_rng(4)
    picture = np.array(letters.draw_sign(Sign("TEA", ""), rng))
    for text, reward in (("T E A", 1), ("T E N", 2 / 3), ("H E N", 1 / 3), ("K L P", 0)):
        found = spelled(picture, Sign(text.replace(" ", ""), f'a sign "{text}"'))
        assert found.reward == pytest.approx(reward) and found.right == (reward == 1), text


def test_words_of_the_evaluation_are_never_trained_on() -> None:
    prompts = TASKS["text"].prompts
    trained, held_out = prompts(0, 512, held_out=False), prompts(0, 256, held_out=True)
    assert not {sign.letters for sign in trained} & {sign.letters for sign in held_out}
    assert {letter for sign in trained for letter in sign.letters} == set(LETTERS)


def test_more_signs_than_there_are_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"prompts: there are \d+ different signs of that kind, not 5000; ask for fewer\."
    ):
        TASKS["text"].prompts(0, 5000, held_out=True)
