"""The report in one file: hostile texts are inert, nothing is loaded, odd numbers are drawn, a browser can read it."""

import base64
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from machinery.evaluation.figures import MOST_POINTS, bars_svg, calibration_svg, histogram_svg, scatter_svg
from machinery.evaluation.html_report import LOOKS, PAGE, write_report

STYLE = (PAGE / "report.css").read_text(encoding="utf-8")

HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"> \"'><svg "
    "onload=alert(1)> ' onmouseover='alert(1) </title></style></textarea> <!--<script> --> ]]> &lt;b&gt; &amp; "
    "\u2028 \u2029 javascript:alert(1) \u202e ${alert(1)} {{7*7}} \\u003cb\\u003e"
)
NAN, INF = math.nan, math.inf


def make_report(text: str, pairs: int = 3) -> dict:
    """A report that has the text in every place where one can be."""
    figures = [
        histogram_svg({text: [0.1, 0.4, 0.7], text + "2": [0.9, 1.2]}, text),
        scatter_svg({text: [(1, 0.5), (3, -0.5)]}, text, text),
        calibration_svg([dict(low=0, high=1, count=5, predicted=0.5, observed=0.6, ci_low=0.2, ci_high=0.9)]),
        bars_svg([(text, 0.7, 0.5, 0.9, 10), (text, NAN, NAN, NAN, 0)], text),
    ]
    generation = {
        "prompt": text, "category": text, "reason": text,
        "answers": [{"model": text, "text": text, "tokens": n, "score": n / 2} for n in (3, 4)],
    }  # fmt: skip
    return {
        "title": text,
        "subtitle": text,
        "verdicts": [
            {"model": text, "word": word, "sentences": [text, text], "figures": [(text, text)]}
            for word in ("better", text)
        ],
        "caveats": [text, text],
        "tables": [{"title": text, "caption": text, "columns": [text, text], "rows": [[text, text], [text, text]]}],
        "figures": [{"title": text, "caption": text, "svg": svg} for svg in figures],
        "generations": [generation | {"win": (1.0, 0.5, 0.0, None)[n % 4]} for n in range(pairs)],
        "made": {text: text, "seed": "42"},
    }


class Page(HTMLParser):
    """What a parser finds in a page: its elements with their attributes, and its texts."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        self.texts = [(tag, text) for tag, text in self.texts if text.strip()]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, attrs))
        self.texts.append((tag, ""))
        self.inside += [tag] * (tag not in ("meta", "input"))

    def handle_endtag(self, tag):
        while self.inside.pop() != tag:
            pass
        self.texts.append((self.inside[-1] if self.inside else "", ""))

    def handle_data(self, data):
        tag, text = self.texts[-1] if self.texts else ("", "")  # a text may come in parts
        self.texts[-1:] = [(tag, text + data)]

    def handle_comment(self, data):
        self.elements.append(("comment", data))

    def of(self, tag):
        return [dict(attrs) for name, attrs in self.elements if name == tag]


@pytest.fixture
def write(tmp_path):
    def write(report, name="report.html"):
        write_report(tmp_path / name, report)
        return Page(tmp_path / name)

    return write


# --- What is in the page ---


def test_hostile_texts_add_no_element_and_no_attribute_and_are_shown_as_they_are(write):
    harmless, hostile = write(make_report("harmless")), write(make_report(HOSTILE))
    assert hostile.elements == harmless.elements
    wrong = [(was, now) for was, now in zip(harmless.texts, hostile.texts, strict=True) if was[0] != now[0]]
    assert wrong == []
    shown = [text for tag, text in hostile.texts if HOSTILE in text and tag != "script"]
    assert len(shown) == sum("harmless" in text for tag, text in harmless.texts if tag not in ("script", "text"))


def test_generations_are_embedded_as_json_that_cannot_end_its_element(write):
    page = write(make_report(HOSTILE))
    [_, data, _] = [text for tag, text in page.texts if tag in ("style", "script")]
    assert not set("<>&\u2028\u2029") & set(data)
    assert [pair["answers"][1]["text"] for pair in json.loads(data)] == [HOSTILE] * 3


def test_what_no_page_can_hold_is_written_out(write):
    page = write(make_report("a\x00b\x1b[31m\ud800\r\nc"))
    assert ("h1", "a\\x00b\\x1b[31m\\ud800\nc") in page.texts


def test_nothing_outside_the_file_is_referred_to(write, tmp_path):
    page = write(make_report(HOSTILE))
    for tag, attributes in page.elements:
        for name, value in attributes:
            assert not name.startswith("on") and name != "style", (tag, name)
            if name in ("src", "href", "xlink:href", "action", "srcset", "data", "poster", "formaction"):
                assert value.startswith("#"), (tag, name, value)
    assert "url(" not in STYLE and "@import" not in STYLE
    assert not {"link", "base", "iframe", "object", "embed", "img"} & {tag for tag, _ in page.elements}


def test_the_policy_lets_only_the_pages_own_script_and_style_run(write):
    page = write(make_report("harmless"))
    policy = next(meta["content"] for meta in page.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    style, _, script = [text for tag, text in page.texts if tag in ("style", "script")]
    for kind, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy


def test_every_link_within_the_page_and_every_label_leads_somewhere(write):
    page = write(make_report("harmless"))
    ids = [value for _, attributes in page.elements for name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = [link["href"][1:] for link in page.of("a")]
    wanted += [value for _, attributes in page.elements for name, value in attributes if name == "aria-labelledby"]
    assert set(wanted) <= set(ids) and len(wanted) > 8


def test_verdicts_come_first_and_caveats_right_behind(write):
    page = write(make_report("harmless"))
    sections = [section["id"] for section in page.of("section") if "id" in section]
    assert sections == ["verdicts", "caveats", "tables", "figures", "generations", "made"]


@pytest.mark.parametrize("report", [{}, {"title": "Nothing"}, dict.fromkeys(make_report("x")) | {"title": "Nothing"}])
def test_a_part_that_is_missing_or_empty_is_left_out(write, report):
    page = write(report)
    assert page.of("section") == page.of("nav") == page.of("table") == []


def test_an_error_leaves_the_old_report(write, tmp_path):
    write({"title": "old"})
    with pytest.raises(KeyError):
        write({"title": "new", "tables": [{"columns": ["no title"]}]})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "old" in (tmp_path / "report.html").read_text()


def test_columns_of_numbers_are_set_to_the_right_and_short_rows_are_filled(write):
    rows = [["a", "0.88 [0.83, 0.92]", "3 of them", "+1"], ["b", "n/a", "many", "-0.5 (p < 0.01)"], ["c", "", "few"]]
    page = write({"tables": [{"title": "t", "caption": "", "columns": ["", "rate", "words", "x"], "rows": rows}]})
    assert [cell["class"].split()[0] for cell in page.of("td")] == ["number", "words", "number"] * 3
    assert [head.get("scope") for head in page.of("th")] == ["col"] * 4 + ["row"] * 3


def test_without_a_script_the_first_twenty_pairs_are_there(write):
    page = write({"generations": make_report("harmless", pairs=23)["generations"]})
    assert len([article for article in page.of("article") if article.get("class") == "pair"]) == 20 + 1  # the empty one
    assert "The first 20 of 23 pairs. The others, and searching, need JavaScript." in [text for _, text in page.texts]
    assert "hidden" in page.of("form")[0]
    assert [place["id"] for place in page.of("div") if "hidden" in place] == ["pages"]


def test_odd_wins_scores_and_numbers_of_answers_are_shown(write):
    answer = {"model": "m", "text": "t", "tokens": 1, "score": NAN}
    wins = [NAN, 0.75, 0.25, None]
    pairs = [{"prompt": "p", "category": None, "win": win, "reason": None, "answers": [answer] * 2} for win in wins]
    pairs += [pairs[0] | {"answers": [answer | {"score": None}] * count} for count in (0, 1, 3)]
    page = write({"generations": pairs})
    shown = [text for _, text in page.texts if text in ("m wins", "m loses", "tie", "not judged")]
    assert shown == ["not judged", "m wins", "m loses", "not judged", *["not judged"] * 3]
    assert "1 token" in [text for _, text in page.texts]


# --- Figures ---


def texts_of(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def of(svg, tag):
    return [element.attrib for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}" + tag)]


ODD = [[], [NAN], [INF, -INF, None], [0.0], [3.0] * 5, [1e-14, 2e-14], [1e29, -1e29], [1e308, 1.0], [5.0, 5.0 + 1e-12],
       [10**400, 2], [-1e-9, 1e-9], [123456.0, 123457.0], [NAN, 1.0, 2.0], [0, 1], [1e15, 1e15 + 2]]  # fmt: skip


@pytest.mark.parametrize("values", ODD, ids=lambda values: str(values)[:24])
def test_odd_numbers_are_drawn_or_left_out_with_a_word(values):
    count = len(values)
    bins = [dict(low=0, high=1, count=1, predicted=v, observed=v, ci_low=v, ci_high=NAN) for v in values]
    figures = [
        histogram_svg({"a": values}, "x"),
        histogram_svg({"empty": [], "a": values}, "x", bins=0),
        scatter_svg({"a": list(zip(values, values, strict=True))}, "x", "y"),
        scatter_svg({"empty": [], "a": [(v, 1) for v in values]}, "x", "y"),
        calibration_svg(bins),
        bars_svg([("row", v, v, v, 3) for v in values], "x"),
    ]
    drawable = [v for v in values if v is not None and abs(v) < 1e30]
    for svg in figures:
        assert ElementTree.fromstring(svg).attrib["role"] == "img"
        assert not re.search(r'="[^"]*\b(nan|inf|None)\b', svg)
        assert ("Nothing to draw: no finite values." in texts_of(svg)) == (not drawable)
    if drawable and len(drawable) < count:
        assert f"{count - len(drawable)} not finite" in figures[0]
        assert "no value" in figures[-1]


def test_the_columns_of_a_histogram_are_shares_of_their_series():
    svg = histogram_svg({"a": [0.0, 0.0, 0.0, 1.0], "b": [1.0]}, "x", bins=2)
    a, b = (path["d"] for path in of(svg, "path") if path["d"].startswith("M") and "V" in path["d"] and "H" in path["d"]
            and path.get("stroke-width") and not path["d"].startswith("M11 "))  # fmt: skip
    foot = float(re.match(r"M\S+ ([\d.]+)", a)[1])
    heights = [[foot - float(v) for v in re.findall(r"V([\d.]+)", path)[:-1]] for path in (a, b)]
    assert heights[0] == pytest.approx([142.5, 0, 47.5], abs=0.1)  # of 190: 75%, nothing, 25%
    assert heights[1] == pytest.approx([0, 0, 190], abs=0.1)


def test_ticks_are_round_numbers():
    assert texts_of(histogram_svg({"a": [0.1, 6.9]}, "x"))[-5:] == ["0", "2", "4", "6", "x"]
    assert texts_of(scatter_svg({"a": [(-0.031, 1), (0.029, 1)]}, "x", "y"))[-4:-1] == ["\u22120.02", "0.00", "0.02"]


@pytest.mark.parametrize(("low", "share", "start"), [(0.2, 0.3, 0), (0.5, 0.6, 0.5)])
def test_a_calibrated_bin_lies_on_the_diagonal(low, share, start):
    svg = calibration_svg([dict(low=low, high=1, count=9, predicted=share, observed=share, ci_low=0.1, ci_high=0.7)])
    assert texts_of(svg)[-7] == f"{start:.1f}"
    diagonal = next(path["d"] for path in of(svg, "path") if path["d"].count("L") == 1)
    x0, y0, x1, y1 = map(float, re.findall(r"[\d.]+", diagonal))
    [dot] = of(svg, "circle")
    assert float(dot["cx"]) == pytest.approx(x0 + (share - start) / (1 - start) * (x1 - x0), abs=0.1)
    assert float(dot["cy"]) == pytest.approx(y0 + (share - start) / (1 - start) * (y1 - y0), abs=0.1)


def test_a_bar_at_the_reference_has_its_dot_on_the_upright_line():
    for reference in (0.5, 2.0):
        svg = bars_svg([("even", reference, reference - 0.1, reference + 0.1, 9)], "x", reference=reference)
        upright = next(path["d"] for path in of(svg, "path") if path["d"].endswith("v14"))
        assert of(svg, "circle")[0]["cx"] == re.match(r"M([\d.]+)", upright)[1]


def test_a_screen_reader_is_told_the_numbers():
    described = ElementTree.fromstring(bars_svg([("noise", 0.75, 0.5, 0.9, 18)], "win rate"))
    assert [element.text for element in described[:2]] == ["win rate", "noise: 0.75 [0.50, 0.90], n 18"]
    described = ElementTree.fromstring(scatter_svg({"policy": [(0, 1), (0, -1), (0, 2), (0, NAN)]}, "x", "y"))
    assert described[1].text == "policy: n 3 (1 not finite), 67% above 0"


def test_bars_of_few_values_and_of_chance_are_marked_without_colour():
    rows = [("sure", 0.9, 0.8, 1.0, 40), ("chance", 0.9, 0.8, 1.0, 40), ("few", 0.9, 0.8, 1.0, 9)]
    svg = bars_svg(rows, "win rate", p_values=[0.01, 0.2, 0.01])
    sure, chance, few = (circle["fill"] for circle in of(svg, "circle"))
    assert sure == few != chance
    assert [path.get("stroke-dasharray") for path in of(svg, "path") if path.get("stroke-width") == "2"] == [
        None, None, "3 3",
    ]  # fmt: skip
    described = ElementTree.fromstring(svg)[1].text.split("; ")
    assert [words.rpartition(", n ")[2] for words in described] == [
        "40, beyond chance", "40, may be chance", "9 (few), beyond chance",
    ]  # fmt: skip


def test_only_what_the_figures_draw_is_markup(write):
    page = write({"figures": [{"title": "t", "caption": "", "svg": "<svg><script></script></svg>"}]})
    assert page.of("svg") == []


def test_every_word_of_a_verdict_has_a_look_of_its_own(write):
    words = {"better", "worse", "mixed", "only surer of itself", "only less sure of itself", "cannot tell"}
    page = write({"verdicts": [{"model": "m", "word": word, "sentences": []} for word in sorted(words)]})
    looks = [article["class"] for article in page.of("article")]
    assert looks == ["better", "unclear", "mixed", "surer", "surer", "worse"]
    assert set(looks) - {"unclear"} == set(LOOKS.values())
    assert all(f".{look} .word" in STYLE for look in set(LOOKS.values()))


def test_of_very_many_points_some_are_drawn_and_the_legend_says_so():
    svg = scatter_svg({"a": [(n, n) for n in range(3 * MOST_POINTS)]}, "x", "y")
    assert "a: n 6,000, 2,000 drawn, 100% above 0" in texts_of(svg)
    assert svg.count("<path") < MOST_POINTS + 50


def test_series_can_be_told_apart_without_colour():
    svg = scatter_svg({name: [(0, 0)] for name in "abc"}, "x", "y")
    assert (
        len({re.sub(r"^M[\d.]+ [\d.]+", "", path["d"]) for path in of(svg, "path") if path["d"].startswith("M11 ")})
        == 3
    )
    svg = histogram_svg({name: [0] for name in "abc"}, "x")
    legend = [path for path in of(svg, "path") if path["d"].startswith("M11 ")]
    assert len({(path["fill-opacity"], path["stroke-dasharray"]) for path in legend}) == 3


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrasts_are_those_of_wcag_aa_in_both_schemes():
    light, dark = (dict(re.findall(r"(--\w+): (#\w{6});", part)) for part in STYLE.split("@media screen")[:2])
    assert light.keys() == dark.keys()
    for scheme in (light, dark):
        for text in ("--ink", "--soft", "--link", "--good", "--bad", "--warn"):
            assert contrast(scheme[text], scheme["--paper"]) >= 4.5, text
        assert min(contrast(scheme[text], scheme["--box"]) for text in ("--ink", "--soft")) >= 4.5
        assert contrast(scheme["--ink"], scheme["--mark"]) >= 4.5
        for line in ("--edge", "--reference", "--policy", "--third", "--fourth"):
            assert contrast(scheme[line], scheme["--paper"]) >= 3, line


# --- In a browser ---

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-pipe"
).split()
# Chromium reads commands from file 3 and answers in file 4.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """A headless Chromium that is spoken to in the Chrome DevTools Protocol."""

    def __init__(self, profile):
        self.count, self.session, self.events = 0, {}, []
        (commands, mine), (answers, its) = os.pipe(), os.pipe()
        far = [fcntl.fcntl(end, fcntl.F_DUPFD, 50) for end in (commands, its)]  # out of the way of 3 and 4
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *map(str, far), CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=far, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (*far, commands, its):
            os.close(end)
        self.commands, self.answers = os.fdopen(mine, "wb", 0), os.fdopen(answers, "rb")
        self.patience = threading.Timer(240, self.process.kill)  # then reading ends with an error
        self.patience.start()
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.do(f"{domain}.enable")

    def read(self):
        message = bytearray()
        while not message.endswith(b"\0"):
            byte = self.answers.read(1)
            assert byte, "the browser has gone"
            message += byte
        return json.loads(message[:-1])

    def do(self, method, **params):
        self.count += 1
        command = {"id": self.count, "method": method, "params": params, **self.session}
        self.commands.write(json.dumps(command).encode() + b"\0")
        while (answer := self.read()).get("id") != self.count:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, width=390, dark=False, script=True, media="", anchor=""):
        self.do("Emulation.setScriptExecutionDisabled", value=not script)
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.events.clear()
        self.do("Page.navigate", url=path.as_uri() + anchor)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.read())

    def js(self, expression):
        result = self.do("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def key(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            self.do("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def choose(self, control, value):
        """Set a control as a user does, wait for its effect, and return the status line and the pairs shown."""
        self.js(
            f"document.getElementById('{control}').value = {json.dumps(value)};"
            f"document.getElementById('{control}').dispatchEvent(new Event('input', {{bubbles: true}}));"
            "new Promise((done) => setTimeout(done, 250))"
        )
        return self.shown()

    def shown(self):
        places = "[...document.querySelectorAll('.place')].map((place) => +place.textContent)"
        return self.js(f"[document.getElementById('status').textContent, {places}]")

    def close(self):
        self.session = {}
        self.do("Browser.close")
        self.process.wait()
        self.patience.cancel()
        self.commands.close()
        self.answers.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM:
        pytest.skip("no Chromium here")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


TROUBLE = ("Page.javascriptDialogOpening", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1200])
def test_in_a_browser_nothing_runs_nothing_is_loaded_and_the_page_fits(browser, tmp_path, width, dark):
    report = make_report(HOSTILE, pairs=60)
    long = "a" * 300 + " " + "wide " * 60
    report["tables"].append({"title": long, "caption": long, "columns": ["x" * 60] * 9, "rows": [["0.123 [0, 1]"] * 9]})
    report["verdicts"][0]["model"] = report["made"]["command"] = report["generations"][0]["answers"][0]["model"] = (
        "a" * 300
    )
    path = tmp_path / "report.html"
    write_report(path, report)
    browser.open(path, width, dark)
    assert browser.js("document.documentElement.scrollWidth") <= browser.js("innerWidth") == width
    assert browser.js("document.title") == HOSTILE
    assert browser.js("document.querySelectorAll('script, img, [onload], [onerror], [onmouseover]').length") == 2
    assert browser.js("document.querySelectorAll('.pair').length") == 50
    assert browser.js("document.querySelectorAll('.pair .text')[1].textContent") == HOSTILE
    assert [event for event in browser.events if event["method"] in TROUBLE] == []
    requests = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    assert requests == [path.as_uri()]
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 200) == dark


@pytest.mark.parametrize("models", [1, 4])
def test_in_a_browser_no_cell_of_a_table_is_out_of_sight_on_a_phone(browser, tmp_path, models):
    names = ["", "reference", *(f"runs/a-long-name-of-a-run-{n}" for n in range(models))]
    rows = [["score of the reference's best by implicit reward", *["-12.37 [-13.26, -11.48]"] * (models + 1)]] * 3
    rows[1] = [rows[1][0], "", *rows[1][2:]]
    write_report(tmp_path / "report.html", {"tables": [{"title": "t", "caption": "", "columns": names, "rows": rows}]})
    browser.open(tmp_path / "report.html", 390)
    ends = browser.js(
        "[...document.querySelectorAll('td')].map((td) => td.getBoundingClientRect()).filter((box) => box.width).map((box) => box.right)"
    )
    assert len(ends) == 3 * (models + 1)
    assert max(ends) <= 390 and browser.js("document.querySelector('.scroll').scrollWidth") <= 390
    assert browser.js("document.querySelector('td').innerText").split() == [
        "reference",
        "-12.37",
        "[-13.26,",
        "-11.48]",
    ]
    nodes = browser.do("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert roles.count("rowheader") == 3 and roles.count("columnheader") == models + 2
    browser.open(tmp_path / "report.html", 1280)
    table, box = (browser.js(f"document.querySelector('{name}').offsetWidth") for name in ("table", ".scroll"))
    assert table >= box  # all of the width is used
    assert browser.js("getComputedStyle(document.querySelector('tbody th')).position") == "sticky"


@pytest.mark.parametrize("width", [390, 540, 560, 870, 950, 1200])
def test_in_a_browser_the_text_of_figures_has_12_px(browser, tmp_path, width):
    write_report(tmp_path / "report.html", make_report("harmless"))
    browser.open(tmp_path / "report.html", width)
    size = "parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getBoundingClientRect().width / 360"
    assert 12 <= browser.js(f"Math.min(...[...document.querySelectorAll('svg text')].map((t) => {size}))") < 18


def test_in_a_browser_a_script_that_got_into_the_page_does_not_run(browser, tmp_path):
    svg = "<svg onload=\"document.title='owned'\"><script>document.title='owned'</script></svg>"
    figure = {"title": "", "caption": "", "svg": Markup(svg)}
    write_report(tmp_path / "report.html", {"title": "calm", "figures": [figure]})
    browser.open(tmp_path / "report.html")
    assert browser.js("document.title") == "calm"
    assert [
        event["method"] for event in browser.events if event["method"] in TROUBLE
    ]  # the browser says what it refused


@pytest.fixture
def many(browser, tmp_path):
    """2,000 pairs; each fourth a win, a loss, a tie, not judged. The n-th answer of the policy has n tokens."""
    pairs = [
        {"prompt": f"question {n}", "category": f"c{(n + 1) % 2}", "win": (1.0, 0.0, 0.5, None)[n % 4], "reason": "Why (not)?",
         "answers": [{"model": "reference", "text": f"old [{n}]", "tokens": 1, "score": 1.0},
                     {"model": "policy", "text": f"new ({n})\n\nend " * 50, "tokens": n, "score": n % 7 / 2}]}
        for n in range(2000)
    ]  # fmt: skip
    write_report(tmp_path / "many.html", {"title": "Many", "generations": pairs})
    browser.open(tmp_path / "many.html")
    return browser


def test_in_a_browser_pairs_come_fifty_at_a_time(many):
    assert many.shown() == ["2,000 of 2,000 pairs, 1 to 50 shown", list(range(1, 51))]
    many.js("document.getElementById('next').click()")
    assert many.shown() == ["2,000 of 2,000 pairs, 51 to 100 shown", list(range(51, 101))]
    assert many.js("document.activeElement.id") == "pair-51"
    many.js("document.getElementById('previous').click()")
    assert many.shown()[1] == list(range(1, 51))
    assert many.js("document.getElementById('previous').disabled")


def test_in_a_browser_a_link_leads_to_its_pair(many, tmp_path):
    settled = "new Promise((done) => setTimeout(done, 250))"
    place = "Math.round(document.activeElement.getBoundingClientRect().top)"
    many.choose("filter", "loss")
    many.js("location.hash = '#pair-1502'; " + settled)  # within what is shown
    assert many.js("document.activeElement.id") == "pair-1502"
    assert many.js("document.getElementById('filter').value") == "loss"
    many.js("location.hash = '#pair-1503'; " + settled)  # past a filter that hides it
    assert many.js("document.activeElement.id") == "pair-1503"
    assert many.js("document.getElementById('filter').value") == ""
    assert many.shown()[1] == list(range(1501, 1551))
    assert 0 <= many.js(place) <= 10
    assert many.js("[...document.querySelectorAll('.place')].every((a) => a.hash === '#pair-' + a.textContent)")
    for odd in ("#pair-0", "#pair-2001", "#pair-1e3", "#pair-<b>"):
        many.js(f"location.hash = {odd!r}; " + settled)
    assert many.shown()[1] == list(range(1501, 1551))


def test_in_a_browser_a_page_that_is_opened_at_a_pair_shows_it(browser, tmp_path):
    write_report(tmp_path / "report.html", make_report("harmless", pairs=120))
    browser.do("Page.navigate", url="about:blank")
    browser.open(tmp_path / "report.html", anchor="#pair-77")
    assert browser.js("document.activeElement.id") == "pair-77"


def test_in_a_browser_pairs_are_filtered_searched_and_sorted(many):
    assert many.choose("filter", "loss") == ["500 of 2,000 pairs, 1 to 50 shown", list(range(2, 202, 4))]
    assert many.choose("search", "QUESTION 199")[0] == "2 of 2,000 pairs"  # 1993 and 1997
    assert many.js("document.querySelector('mark').textContent") == "question 199"
    assert many.choose("filter", "") == ["11 of 2,000 pairs", [200, *range(1991, 2001)]]
    assert many.choose("search", "[1999]") == ["1 of 2,000 pairs", [2000]]  # no regular expression
    assert many.choose("search", "(1999)") == ["1 of 2,000 pairs", [2000]]
    assert many.choose("search", "<b>") == ["0 of 2,000 pairs", []]
    many.choose("search", " ")
    assert many.choose("sort", "longest")[1][:2] == [2000, 1999]
    assert many.choose("sort", "difference")[1][:2] == [7, 14]  # 3.0 against 1.0 in every seventh
    assert many.choose("sort", "")[1] == list(range(1, 51))
    assert many.choose("filter", "unjudged")[1][:2] == [4, 8]
    assert many.js("document.getElementById('pages').hidden") is False
    assert many.choose("category", "c1")[1] == []  # not judged is each fourth, c1 the one after it
    assert many.choose("filter", "")[0] == "1,000 of 2,000 pairs, 1 to 50 shown"


def test_in_a_browser_the_page_can_be_used_with_the_keyboard(browser, tmp_path):
    report = make_report("harmless", pairs=60)
    write_report(tmp_path / "report.html", report)
    browser.open(tmp_path / "report.html")
    reached = []
    for _ in range(9):
        browser.key("Tab", 9)
        reached.append(
            browser.js("document.activeElement.id || document.activeElement.hash || document.activeElement.className")
        )
    assert reached == ["#tables", "#figures", "#generations", "#made", "scroll", "search", "filter", "sort", "#pair-1"]
    browser.js("document.getElementById('search').focus()")
    browser.do("Input.insertText", text="nowhere")
    browser.key("Enter", 13, "\r")
    browser.js("new Promise((done) => setTimeout(done, 250))")
    assert browser.shown() == ["0 of 60 pairs", []]
    assert [event for event in browser.events if event["method"] in TROUBLE] == []  # Enter sent nothing off


def test_in_a_browser_figures_and_landmarks_have_names(browser, tmp_path):
    write_report(tmp_path / "report.html", make_report("harmless"))
    browser.open(tmp_path / "report.html")
    nodes = browser.do("Accessibility.getFullAXTree")["nodes"]
    named = [(n["role"]["value"], n["name"]["value"]) for n in nodes if not n["ignored"] and "name" in n]
    assert [name for role, name in named if role in ("image", "img")] == [
        "harmless", "harmless by harmless", "Observed share by predicted probability", "harmless",
    ]  # fmt: skip
    assert {"Verdicts", "Figures", "How it was made"} <= {name for role, name in named if role == "region"}
    assert {"main", "navigation", "contentinfo", "banner", "search"} <= {
        n["role"]["value"] for n in nodes if not n["ignored"]
    }


def test_in_a_browser_without_scripts_the_first_twenty_are_there(browser, tmp_path):
    write_report(tmp_path / "report.html", make_report("harmless", pairs=30))
    browser.open(tmp_path / "report.html", script=False)
    assert browser.js("document.querySelectorAll('.pair').length") == 20
    assert browser.js("document.getElementById('controls').getBoundingClientRect().height") == 0


def test_in_a_browser_the_script_builds_what_the_page_holds_without_it(browser, tmp_path):
    write_report(tmp_path / "report.html", make_report(HOSTILE + "\nb", pairs=4))
    pages = []
    for script in (False, True):
        browser.open(tmp_path / "report.html", script=script)
        pages.append(browser.js("[...document.querySelectorAll('.pair')].map((e) => e.innerText)"))
    assert pages[0] == pages[1] and len(pages[0]) == 4


def test_in_a_browser_print_is_dark_on_light(browser, tmp_path):
    write_report(tmp_path / "report.html", make_report("harmless"))
    browser.open(tmp_path / "report.html", 800, dark=True, media="print")
    assert browser.js("getComputedStyle(document.body).backgroundColor") == "rgb(253, 252, 250)"
    assert browser.js("getComputedStyle(document.getElementById('controls')).display") == "none"
