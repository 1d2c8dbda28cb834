"The paper's numbers as data, and the form of a claim. The everyday path is checked in nbs/48_paper_tables.ipynb and nbs/52_paper.ipynb."
import pytest

from cmunext_nb.paper import DATASETS, IMPROVEMENT, TABLE2, TABLE3, VERDICTS, Claim, Claims, cut

COLUMNS = ("params", "gflops", "fps")


def column_sums(table):
    "One sum a column, in the order of the printed table."
    numbers = [[row[c] for c in COLUMNS] + [row[m][d] for d in ("bus", "busi", "tus", "tnscui") for m in ("iou", "f1")] for row in table.values()]
    return [round(sum(column), 2) for column in zip(*numbers)]


def test_not_a_digit_of_the_copy_has_changed():
    "The sums were made from the paper's text, not from the copy."
    assert column_sums(TABLE2) == [323.82, 541.1, 3585.22, 1117.57, 1196.91, 888.46, 1005.41, 1066.31, 1163.72, 981.03, 1095.57]
    assert column_sums(TABLE3) == [44.18, 87.08, 1646.85, 347.43, 370.39, 278.49, 312.03, 330.37, 359.5, 304.49, 337.94]


def test_every_row_is_whole():
    for table in (TABLE2, TABLE3):
        for row in table.values():
            assert set(row) == {"label", "iou", "f1", *COLUMNS} and list(row["iou"]) == list(row["f1"]) == ["bus", "busi", "tus", "tnscui"]
            assert all(isinstance(row[c], float) for c in COLUMNS)
    assert set(IMPROVEMENT["iou"]) == set(IMPROVEMENT["f1"]) == set(DATASETS) == set(TABLE2["unet"]["iou"])


@pytest.mark.parametrize("value, digits, expected", [(3.149185, 2, 3.14), (0.58, 2, 0.58), (2.4955, 2, 2.49), (1.999999, 2, 1.99), (0.29, 2, 0.29), (7, 1, 7.0)])
def test_cut_does_not_round(value, digits, expected): assert cut(value, digits) == expected


@pytest.mark.parametrize("holds, read, verdict", [(True, False, 0), (True, True, 0), (False, True, 1), (False, False, 2), (None, False, 3), (None, True, 3)])
def test_a_verdict_follows(holds, read, verdict): assert Claim("p", "s", "f", holds, read, "r").verdict == VERDICTS[verdict]


def test_a_list_of_claims():
    claims = Claims()
    assert claims.add("Table 2", "a < b", "1 < 2 & 3", True) is claims[0] and claims.counts == {"holds": 1}
    claims.add("Text", "says", "found", False, True, "another way")
    assert "read as: another way" in claims._repr_html_() and "[another way]" in repr(claims) and "a &lt; b" in claims._repr_html_() and "1 &lt; 2 &amp; 3" in claims._repr_html_()
    assert list(claims.counts) == ["holds", "holds if read so"] and Claims().counts == {}
