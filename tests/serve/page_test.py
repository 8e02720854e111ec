"""The page of `calibatt serve` in Chromium: asked for, watched, cancelled and compared, by mouse and by keyboard, in light and dark, wide and narrow.

It needs Debian's chromium. SCREENSHOTS=FOLDER keeps pictures of what it saw, for people to look at.
"""
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
from browser import Browser  # noqa: E402
from service import ENDLESS, SMALL, Service, run

KEEP = os.environ.get("SCREENSHOTS")

# Every text against what lies behind it, by WCAG's formula; large text needs 3, other text 4.5.
CONTRAST = """
(() => {
  const parse = color => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    const style = getComputedStyle(element);
    if (!text || !element.getClientRects().length || element.closest("[disabled], script, option")) continue;
    const a = luminance(parse(style.color)), b = luminance(behind(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5)) bad.push([element.outerHTML.slice(0, 80), ratio]);
  }
  return bad;
})()"""

# Whatever can be used has a name, and nothing has the id of another.
NAMES = """
(() => {
  const bad = [];
  for (const e of document.querySelectorAll("input, textarea, select, button, progress, video")) {
    if (!e.getClientRects().length) continue;
    if (!e.labels?.length && !e.getAttribute("aria-label") && !e.textContent.trim()) bad.push(e.outerHTML.slice(0, 80));
  }
  const ids = [...document.querySelectorAll("[id]")].map(e => e.id);
  return [...bad, ...ids.filter((id, i) => ids.indexOf(id) !== i)];
})()"""

OVERFLOW = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


def check_looks(browser, name):
    for width, height in ((1280, 800), (400, 800)):
        for dark in (False, True):
            browser.look(width, height, dark)
            where = f"{name}, {width} pixels, {'dark' if dark else 'light'}"
            if KEEP:
                browser.screenshot(os.path.join(KEEP, f"{name}_{width}_{'dark' if dark else 'light'}.png"))
            assert not browser.js(OVERFLOW), f"{where}: wider than the window"
            bad = browser.js(CONTRAST)
            assert not bad, f"{where}: contrast {bad}"
            bad = browser.js(NAMES)
            assert not bad, f"{where}: without a name: {bad}"
    browser.look(1280, 800)


def fill(browser, **fields):
    for name, value in fields.items():
        browser.js(f"document.getElementById({name!r}).value = {str(value)!r}")


def test_a_video_is_made_watched_compared_and_deleted():
    with Service() as service, Browser() as browser:
        browser.look(1280, 800)
        browser.open(f"http://127.0.0.1:{service.port}/")
        browser.until("document.getElementById('state').textContent.includes('tiny-wan')")
        check_looks(browser, "empty")
        # By keyboard alone: from the prompt to the button.
        browser.js("document.getElementById('prompt').focus()")
        browser.type("a red circle moves to the right")
        fill(browser, width=64, height=64, num_frames=5, num_inference_steps=2)
        order = []
        for _ in range(20):
            browser.key("Tab")
            order.append(browser.js("document.activeElement.id || document.activeElement.tagName"))
            if order[-1] == "make":
                break
        assert order == ["width", "height", "plan", "seed", "SUMMARY", "make"], order
        assert browser.js("getComputedStyle(document.activeElement).outlineStyle") != "none", "the focus is seen"
        browser.key("Enter")
        browser.until("document.querySelectorAll('#gallery video').length === 1")
        fill(browser, prompt="a blue square", seed=7)
        browser.js("document.getElementById('make').click()")
        browser.until("document.querySelectorAll('#gallery video').length === 2")
        assert {each["seed"] for each in service.json("GET", "/v1/videos")["data"]} >= {7}
        browser.until("[...document.querySelectorAll('#gallery video')].every(video => video.readyState >= 1 && video.videoWidth === 64)")
        # Two videos side by side: the divide follows keys and the pointer.
        browser.js("document.querySelectorAll('#gallery [aria-pressed]').forEach(button => button.click())")
        browser.until("!document.getElementById('compare').hidden && document.activeElement.id === 'divide'")
        browser.until("['left', 'right'].every(id => document.getElementById(id).readyState >= 2)")
        for _ in range(10):
            browser.key("ArrowRight")
        assert browser.js("document.getElementById('pair').style.getPropertyValue('--at')") == "55%"
        box = browser.js("(() => { const b = document.getElementById('pair').getBoundingClientRect(); return [b.left, b.top, b.width, b.height] })()")
        middle = box[1] + box[3] / 2
        browser.drag(box[0] + box[2] * 0.5, middle, box[0] + box[2] * 0.25, middle)
        assert abs(float(browser.js("document.getElementById('divide').value")) - 25) <= 1
        assert browser.js("getComputedStyle(document.getElementById('right')).clipPath").startswith("inset(0px 0px 0px 2"), "the right video is cut there"
        check_looks(browser, "compare")
        browser.js("document.getElementById('close').click()")
        assert browser.js("document.getElementById('compare').hidden")
        browser.js("[...document.querySelectorAll('#gallery button')].filter(b => b.textContent === 'Delete')[0].click()")
        browser.until("document.querySelectorAll('#gallery video').length === 1")
        assert len(service.json("GET", "/v1/videos")["data"]) == 1
        assert browser.problems() == []


def test_progress_is_shown_and_a_running_video_is_cancelled():
    with Service() as service, Browser() as browser:
        browser.look(1280, 800)
        browser.open(f"http://127.0.0.1:{service.port}/")
        running = service.create(ENDLESS, prompt="a long one " * 40)["id"]
        service.create(prompt="<b>&amp; one that waits")
        browser.until("document.querySelectorAll('#queue li').length === 2")
        browser.until("document.querySelector('#queue progress').value > 0 && document.querySelector('#queue .quiet').textContent.includes('denoising')")
        assert browser.js("document.querySelectorAll('#queue .prompt')[1].textContent") == "<b>&amp; one that waits", "a prompt is text"
        check_looks(browser, "queue")
        browser.js("document.querySelector('#queue button').click()")
        browser.until("document.querySelectorAll('#queue li').length === 0 && document.querySelectorAll('#gallery video').length === 1")
        assert service.ask("GET", f"/v1/videos/{running}")[0] == 404
        assert browser.problems() == []


def test_errors_are_shown():
    with Service() as service, Browser() as browser:
        browser.look(1280, 800)
        browser.open(f"http://127.0.0.1:{service.port}/")
        browser.until("document.getElementById('state').textContent.includes('tiny-wan')")
        fill(browser, prompt="a cat", width=8192, height=8192)
        browser.js("document.getElementById('make').click()")
        browser.until("document.getElementById('problem').textContent.includes('this service makes videos of up to')")
        check_looks(browser, "error")
        assert all("400" in problem for problem in browser.problems())
        service.stop()
        browser.until("document.getElementById('state').textContent.includes('does not answer')")


def test_a_key_is_asked_for():
    with Service("--api-key", "s3cret") as service, Browser() as browser:
        browser.look(1280, 800)
        video = service.json("POST", "/v1/videos", SMALL, {"Authorization": "Bearer s3cret"})["id"]
        browser.open(f"http://127.0.0.1:{service.port}/")
        browser.until("!document.getElementById('key-section').hidden")
        check_looks(browser, "key")
        browser.js("document.getElementById('key').focus()")
        browser.type("s3cret")
        browser.key("Enter")
        browser.until("document.querySelector('#gallery video')?.videoWidth === 64")
        assert browser.js("document.querySelector('#gallery video').src").startswith("blob:"), video
        assert browser.js("document.getElementById('key-section').hidden")
        assert all("401" in problem for problem in browser.problems())


if __name__ == "__main__":
    if KEEP:
        os.makedirs(KEEP, exist_ok=True)
    run(globals())
