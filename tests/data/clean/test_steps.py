"""What each step takes out, and what it leaves alone."""

from __future__ import annotations

from collections import Counter

import pytest

from sproutlm.config.clean import (
    ChineseRules,
    DecontaminateStep,
    LanguageStep,
    PiiStep,
    QualityStep,
)

PROSE = (
    "昨天下午我和几个朋友在城里的老街上走了很久。街边有一家卖茶的小店，主人是一位和气的老人。\n"
    "他说这家店已经开了四十多年，来的大多是熟客。我们坐下来喝了一壶龙井，听他讲了许多从前的事情。\n"
    "天黑以后灯笼一盏盏亮起来，整条街都变成了暖黄色，连石板路也像是刚刚洗过的一样。\n"
    "临走的时候他送给每人一小包茶叶，还嘱咐大家路上小心，有空再来坐坐。"
)
ENGLISH = (
    "The morning train was late again, and the people on the platform had begun to talk with each other.\n"
    "A man with a large suitcase told a story that nobody could quite believe, but everyone listened to it.\n"
    "When the train finally arrived, they were all a little sorry to leave the platform and the story behind.\n"
    "I have often thought of that morning since, and of how easily strangers become friends for half an hour.\n"
    "It would be good to have more late trains, as long as the sun is out and nobody has to be anywhere soon."
)


# --- language ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("春眠不觉晓，处处闻啼鸟。", "zh"),  # fastText alone says ja
        (PROSE, "zh"),
        (ENGLISH, "en"),
        ("これは日本語の文章です。とても短いです。", "ja"),
        ("Ceci n'est pas une pipe, mais une phrase en français.", "fr"),
        ("1234 5678 ...", "und"),
    ],
)
def test_languages_are_told(text, language):
    from sproutlm.data.clean.language import LanguageIdentifier

    assert LanguageIdentifier().identify(text)[0] == language


def test_other_languages_and_doubtful_ones_have_different_reasons():
    from sproutlm.data.clean.steps import Doc, Language

    docs = [Doc("1", PROSE), Doc("2", ENGLISH), Doc("3", "zxcv qwrt")]
    assert Language(LanguageStep(keep=["zh"])).judge(docs)[:2] == [None, "language_other"]
    assert docs[1].detail["language"] == "en"
    assert Language(LanguageStep(keep=["en"], min_score=1.0)).judge([docs[1]]) == ["language_uncertain"]


def test_a_model_file_that_is_none_is_a_sentence(tmp_path):
    from sproutlm.data.clean.language import LanguageIdentifier
    from sproutlm.errors import DataError

    (tmp_path / "lid.bin").write_bytes(b"no model at all")
    with pytest.raises(DataError, match="not a fastText model"):
        LanguageIdentifier(str(tmp_path / "lid.bin"))
    with pytest.raises(DataError, match="no such file"):
        LanguageIdentifier(str(tmp_path / "none.bin"))


# --- quality -------------------------------------------------------------------------------------------------------------


def judged(rule, text, **zh):
    from sproutlm.data.clean.steps import Doc, Quality

    doc = Doc("1", text)
    return Quality(rule, QualityStep(zh=ChineseRules(**zh))).judge([doc])[0], doc.text


@pytest.mark.parametrize("text", [PROSE, ENGLISH])
@pytest.mark.parametrize("rule", ["gopher_quality", "gopher_repetition", "c4", "fineweb"])
def test_good_prose_passes_every_rule(rule, text):
    assert judged(rule, text) == (None, text)


@pytest.mark.parametrize(
    ("rule", "text", "reason"),
    [
        ("gopher_quality", PROSE[:60], "gopher_short_doc"),
        ("gopher_quality", "，".join(PROSE.replace("\n", "")), "gopher_short_clauses"),
        ("gopher_quality", PROSE + "#" * 30, "gopher_too_many_hashes"),
        ("gopher_quality", "\n".join("• " + line for line in PROSE.replace("\n", "，").split("，")), "gopher_too_many_bullets"),
        ("gopher_quality", PROSE.replace("。", "……"), "gopher_too_many_ellipsis"),
        ("gopher_quality", PROSE + "★" * 200, "gopher_below_alpha_threshold"),
        ("gopher_quality", "东西南北春夏秋冬山川湖海风雨雷电。" * 8, "gopher_stop_characters"),
        ("gopher_repetition", "\n".join([PROSE.split("\n")[0]] * 4), "dup_line_frac"),
        ("gopher_repetition", PROSE + "点击这里马上购买" * 8, "top_6_character_gram"),
        ("gopher_repetition", PROSE + "\n".join(["", PROSE[20:60], PROSE[20:60] + "了"]), "duplicated_10_character_grams"),
        ("c4", PROSE.replace("。", ""), "c4_too_few_sentences"),
        ("fineweb", "\n".join(PROSE.replace("。", "").split("，")), "fineweb_line_punctuation"),
        ("fineweb", "\n".join(["好的。"] * 3 + ["是吗？", "不对。", "可以。"] * 4), "fineweb_short_lines"),
        ("gopher_quality", ENGLISH[:100], "gopher_short_doc"),
        ("gopher_repetition", "\n".join([ENGLISH.split("\n")[0]] * 6), "dup_line_frac"),
        ("gopher_quality", "   \n ", "empty"),
    ],
)  # fmt: skip
def test_each_rule_rejects_what_it_is_for(rule, text, reason):
    assert judged(rule, text)[0] == reason


def test_c4_takes_lines_out_and_counts_them():
    from sproutlm.data.clean.chinese import c4

    changed = Counter()
    text = PROSE + "\n首页 登录 注册\n请启用 JavaScript 后再访问本页。\n阅读我们的隐私政策。"
    assert c4(text, ChineseRules(), changed) == (None, PROSE)
    assert changed == {"lines removed": 3}


def test_maths_and_code_pass_c4_unless_brackets_are_refused():
    assert judged("c4", PROSE + "\n集合 {1, 2} 有两个元素。")[0] is None
    assert judged("c4", PROSE + "\n集合 {1, 2} 有两个元素。", refuse_curly_brackets=True)[0] == "c4_curly_bracket"


def test_the_other_script_is_rejected():
    traditional = "漢字簡化後，許多書籍還沒有轉換過來。這個問題對於學習語言的機器來說，並不容易處理。" * 3
    assert judged("gopher_quality", traditional, script="simplified")[0] == "other_script"
    assert judged("gopher_quality", PROSE, script="simplified")[0] is None
    assert judged("gopher_quality", PROSE, script="traditional")[0] == "other_script"


# --- PII -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("请写信给zhang.san+a@mail.example.cn。", "请写信给<email>。"),
        ("电话13812345678，谢谢", "电话<phone>，谢谢"),
        ("拨打+86 138-1234-5678转1", "拨打<phone>转1"),
        ("服务器8.8.8.8已停", "服务器<ip>已停"),
        ("身份证11010519491231002X号", "身份证<id>号"),
    ],
)
def test_pii_is_masked_and_counted(text, masked):
    from sproutlm.data.clean.pii import mask

    counts = Counter()
    assert mask(text, PiiStep(), counts) == masked
    assert counts.total() == 1


@pytest.mark.parametrize(
    "text",
    [
        "圆周率 3.13912345678",
        "订单 2013812345678901",
        "11010519491231002X1",
        "号码 110105194912310021",  # its check digit is X
        "号码 110105194913310028",  # there is no 13th month
        "192.168.0.1 和 10.0.0.1 在内网",
        "版本 1.2.3.4.5",
        "300.1.1.1",
        "a @ b, 价格@5元",
    ],
)
def test_what_names_no_person_is_left_alone(text):
    from sproutlm.data.clean.pii import mask

    assert mask(text, PiiStep(), Counter()) == text


# --- decontamination -----------------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path):
    from sproutlm.config.data import SourceConfig
    from sproutlm.data.clean.decontaminate import build_index
    from sproutlm.data.sources import Counts

    (tmp_path / "exam.csv").write_text(
        "Question,A,B,Answer\n在酶促反应中，决定反应特异性的是下列哪一种物质,辅酶,酶蛋白,B\n《日出》的结构采用的是,散点透视法,拴桩法,A\n短题,甲,乙,A\n",
        encoding="utf-8",
    )
    (tmp_path / "exam.txt").write_text("Which of these planets is the largest one in our solar system, by mass?\n")
    counts = Counts()
    step = DecontaminateStep(against=[SourceConfig(path=str(tmp_path / name)) for name in ("exam.csv", "exam.txt")])
    built = build_index(step, counts)
    built.save(tmp_path / "index.npz")
    counts.check()
    assert counts.dropped == {"shorter than min_ngram (8)": 1}
    return type(built).load(tmp_path / "index.npz")


def test_documents_with_a_run_of_an_evaluation_set_are_found(index):
    found = index.matches(
        [
            "做题：在酶促反应中,决定反应特异性的是下列哪一种物质？答：酶蛋白。",
            "老师问，《日出》的结构采用的是什么",  # shorter than ngram: found whole
            "Q: which of these PLANETS is the largest one in our solar system by mass? Jupiter.",
            "酶促反应中的温度很重要",  # too short a run
            "The largest one in our solar system is Jupiter",
            "",
        ]
    )
    assert found == ["exam.csv", "exam.csv", "exam.txt", None, None, None]
