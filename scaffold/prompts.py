"""The questions on a terminal: arrow keys, reasons beside what is excluded, and a way back."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import questionary
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from questionary.prompts.common import InquirerControl

from scaffold.axes import AXES, BY_KEY, Axis
from scaffold.catalog import Catalog, unknown
from scaffold.errors import RequestError
from scaffold.rules import all_rules, broken, check_name, default, not_offered, why_not

NAME = "name"
BACK_LINE = "← back"
KEYS = "↑ ↓ to move, enter to choose"
KEYS_MANY = "space to tick, enter to go on"


@dataclass(frozen=True)
class Back:
    """Not an answer but the wish to see the question before; `draft` is what was ticked or typed so far."""

    draft: Any = None


def ask(given: dict[str, Any], catalog: Catalog, machine: str) -> dict[str, Any]:
    """`given` and an answer to every question that it leaves open.

    Going back keeps all answers: each question opens on the one it had, as long as that is still possible.
    """
    check_given(given, catalog)
    try:
        return given | answer_all(given, catalog, machine)
    except (KeyboardInterrupt, EOFError):
        print("scaffold: stopped, nothing was written", file=sys.stderr)
        raise KeyboardInterrupt from None  # the command line exits 130


def answer_all(given: dict[str, Any], catalog: Catalog, machine: str) -> dict[str, Any]:
    """Ask one question after the other, and any number of times the one before."""
    questions = [key for key in (*BY_KEY, NAME) if key not in given]
    answers: dict[str, Any] = {}
    position = 0
    while position < len(questions):
        key = questions[position]
        chosen = given | {earlier: answers[earlier] for earlier in questions[:position]}
        before = answers.get(key)
        can_go_back = position > 0
        answer: Any
        if key == NAME:
            answer = ask_name(chosen["task"], before or "", can_go_back)
        elif BY_KEY[key].many:
            answer = ask_many(BY_KEY[key], chosen, before, catalog, can_go_back)
        else:
            wished = (before, default(key, chosen, catalog, machine))
            answer = ask_one(BY_KEY[key], chosen, wished, catalog, can_go_back)
        if isinstance(answer, Back):
            answers[key] = answer.draft
            position -= 1
        else:
            answers[key] = answer
            position += 1
    return answers


def check_given(given: Mapping[str, Any], catalog: Catalog) -> None:
    """Refuse flags that no answers to the questions could complete."""
    for key in given.keys() & BY_KEY.keys():
        known = list(catalog.values(key, given.get("task")))
        for item in as_tuple(given[key]):
            if item not in known and "task" in given:
                raise not_offered(BY_KEY[key], item, given["task"], catalog)
            if item not in known:
                raise unknown(BY_KEY[key].noun, item, known)
    partial = as_tuples(given)
    if rule := broken(partial, catalog):
        raise RequestError(rule.message(partial))
    for axis in AXES:
        if axis.key in given or axis.many:
            continue
        reasons = exclusions(axis, given, catalog).values()
        if None not in reasons:
            why = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
            raise RequestError(f"no {axis.key} goes with the other choices: {why}")
    if NAME in given:
        check_name(given[NAME])


def as_tuple(value: Any) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (value,)


def as_tuples(chosen: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Answers as the rules read them."""
    return {key: as_tuple(value) for key, value in chosen.items() if key in BY_KEY}


def exclusions(axis: Axis, chosen: Mapping[str, Any], catalog: Catalog) -> dict[str, str | None]:
    """Every value of a question and why it cannot be chosen now, None where it can."""
    values = catalog.values(axis.key, chosen.get("task"))
    if axis.many:  # what has to be chosen anyway is no reason against the others
        chosen = {**chosen, axis.key: required(axis.key, chosen, catalog)}
    reasons = {value: why_not(axis.key, value, chosen, catalog) for value in values}
    if axis.key == "task":
        reasons = {task: lacks(task, chosen, catalog) or why for task, why in reasons.items()}
    return reasons


def lacks(task: str, chosen: Mapping[str, Any], catalog: Catalog) -> str | None:
    """The data or feature among the answers that a task does not offer, in words."""
    for key in ("data", "with"):
        for item in as_tuple(chosen.get(key, ())):
            if item not in catalog.values(key, task):
                return f"it has no {BY_KEY[key].noun} {item}"
    return None


def required(key: str, chosen: Mapping[str, Any], catalog: Catalog) -> tuple[str, ...]:
    """What the earlier answers need to be among the answers to this question."""
    nothing = {**as_tuples(chosen), key: ()}
    rules = [rule for rule in all_rules(catalog) if key in rule.unless and rule.applies(nothing)]
    return tuple(rule.unless[key][0] for rule in rules)


def ask_one(
    axis: Axis, chosen: Mapping[str, Any], wished: tuple[str | None, ...], catalog: Catalog, can_go_back: bool
) -> str | Back:
    """One value; the first of `wished` that can be chosen is highlighted."""
    reasons = exclusions(axis, chosen, catalog)
    possible = [value for value, reason in reasons.items() if reason is None]
    start = next((value for value in wished if value in possible), None)
    question = questionary.select(
        axis.question,
        lines(axis, chosen, reasons, (), catalog, can_go_back),
        default=start,
        instruction=f"({KEYS})",
    )
    answer: str | Back = run(question, can_go_back)
    if isinstance(answer, Back):
        return Back(wished[0])
    settle(axis.question, answer)
    return answer


def ask_many(
    axis: Axis, chosen: Mapping[str, Any], before: tuple[str, ...] | None, catalog: Catalog, can_go_back: bool
) -> tuple[str, ...] | Back:
    """Any number of values; those answered before and those that have to be there are ticked."""
    reasons = exclusions(axis, chosen, catalog)
    needed = required(axis.key, chosen, catalog)
    ticked = default(axis.key, chosen, catalog) if before is None else before
    while True:
        question = questionary.checkbox(
            axis.question,
            lines(axis, chosen, reasons, (*ticked, *needed), catalog, can_go_back),
            instruction=f"({KEYS_MANY})",
        )
        answer: list[str] | Back = run(question, can_go_back)
        if isinstance(answer, Back):
            return answer
        ticked = tuple(answer)
        if rule := broken({**as_tuples(chosen), axis.key: ticked}, catalog):
            questionary.print(f"  {rule.because}; choose {rule.choose}")
            continue
        settle(axis.question, ", ".join(ticked) or "none")
        return ticked


def ask_name(suggested: str, typed: str, can_go_back: bool) -> str | Back:
    """The project's name; asked again, with the reason, until it is one."""
    message = "What is the project called?"
    hint = "(escape to go back)" if can_go_back else None
    while True:
        question = questionary.text(
            message, default=typed, instruction=hint, placeholder=FormattedText([("fg:#888888", suggested)])
        )
        answer: str | Back = run(question, can_go_back)
        if isinstance(answer, Back):
            return answer
        typed = answer
        name = typed.strip() or suggested
        try:
            check_name(name)
        except RequestError as error:
            questionary.print(f"  {error}")
            continue
        settle(message, name)
        return name


def lines(
    axis: Axis,
    chosen: Mapping[str, Any],
    reasons: Mapping[str, str | None],
    ticked: Collection[str],
    catalog: Catalog,
    can_go_back: bool,
) -> list[questionary.Choice]:
    """A line per value: what it is, or why it cannot be chosen."""
    values = catalog.values(axis.key, chosen.get("task"))
    column = max(map(len, values), default=0)
    margin = 5 if axis.many else 3  # the pointer, and the circle that is ticked
    choices = []
    for value, text in values.items():
        if reason := reasons[value]:
            line = questionary.Choice(value, disabled=fold(reason, len(value) + 7, 5))
        else:
            start = margin + column + 2
            title = f"{value:<{column}}  {fold(text, start, start)}"
            line = questionary.Choice(title, value=value, checked=value in ticked)
        choices.append(line)
    return [*choices, questionary.Choice(BACK_LINE)] if can_go_back else choices


def fold(text: str, start: int, margin: int) -> str:
    """Broken between words where the terminal ends, from column `start` on: a reason cut off is none."""
    width = max(40, shutil.get_terminal_size().columns - 1)
    return textwrap.fill(text, width, initial_indent=" " * start, subsequent_indent=" " * margin).lstrip()


def run(question: questionary.Question, can_go_back: bool) -> Any:
    """Ask, and answer Back on that line, on Escape and, among choices, on the left arrow."""
    app = question.application
    app.erase_when_done = True  # settle() leaves the short form
    controls = [window.content for window in app.layout.find_all_windows()]
    choices = next((control for control in controls if isinstance(control, InquirerControl)), None)

    def leave(event: KeyPressEvent) -> None:
        draft = event.current_buffer.text if choices is None else tuple(choices.selected_options)
        event.app.exit(result=Back(draft))

    keys = KeyBindings()
    keys.add("escape", eager=True)(leave if can_go_back else ignore)
    if choices is not None:
        on_back = Condition(lambda: choices.get_pointed_at().value == BACK_LINE)
        keys.add("enter", eager=True, filter=on_back)(leave)
        keys.add(" ", eager=True, filter=on_back)(leave)
        keys.add("left", eager=True)(leave if can_go_back else ignore)
        keys.add("a", eager=True)(ignore)  # questionary's "all" and "invert" would tick the way back
        keys.add("i", eager=True)(ignore)
        keys.add("c-o", eager=True)(ignore)  # the line editor under the list would answer ""
    app.key_bindings = merge_key_bindings([app.key_bindings or KeyBindings(), keys])
    return question.unsafe_ask()


def ignore(event: KeyPressEvent) -> None:
    """A key that means nothing here."""


def settle(message: str, answer: str) -> None:
    """What stays on the screen of an answered question."""
    questionary.print(f"? {message} {answer}")
