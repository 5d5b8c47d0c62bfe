"""File names of results."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.names import count_of, list_names, result_stems, slug, slugs


def test_one_prompt_gives_the_id_alone_and_several_give_slugs():
    assert result_stems("p1__frame_012", ["blood vessel"]) == ["p1__frame_012"]
    assert result_stems("a", ["Blood vessel!", "冠状动脉 血管"]) == ["a--blood-vessel", "a--冠状动脉-血管"]


def test_prompts_that_look_alike_get_different_slugs_whatever_their_order():
    forth, back = (slugs(["blood vessel", "Blood-Vessel", "bone"]), slugs(["bone", "Blood-Vessel", "blood vessel"]))

    assert len(set(forth)) == 3
    assert forth == back[::-1]
    assert forth[2] == "bone" and forth[0].startswith("blood-vessel-")


def test_prompt_without_a_letter_still_has_a_name():
    assert slug("???") == "prompt"


def test_long_names_are_cut_and_stay_different():
    one, two = result_stems("x" * 300 + "1", ["a"])[0], result_stems("x" * 300 + "2", ["a"])[0]
    chinese = result_stems("图" * 100, ["血管" * 60, "血管" * 61])

    assert one != two and len(set(chinese)) == 2
    assert all(len(stem.encode()) < 230 for stem in (one, two, *chinese))


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a\0b"])
def test_id_that_is_not_a_file_name_is_refused(name):
    with pytest.raises(ValueError, match="cannot be a file name"):
        result_stems(name, ["vessel"])


def test_prompt_given_twice_is_refused():
    with pytest.raises(ValueError, match="'vessel' is given twice"):
        slugs(["vessel", "vessel"])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True, max_size=6))
def test_slugs_are_different_and_are_file_names(prompts):
    found = slugs(prompts)

    assert len({each.lower() for each in found}) == len(prompts)
    assert all(each and not set(each) & set('/\\:*?"<>|\0 \n') for each in found)


def test_long_lists_say_how_many_more_there_are():
    assert list_names("abc") == "a, b, c"
    assert list_names("abcdefg") == "a, b, c, d, e and 2 more"
    assert list_names(("x", "y", "z"), 1, "; ") == "x and 2 more"
    assert [count_of(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
