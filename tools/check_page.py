"""Looks at a page of `calibatt report` in Chromium: errors, width, contrast, labels. Usage: tools/check_page.py PAGE.html…

At 1280 and 400 pixels, in light and in dark. Prints what it finds and exits with 1 if there is something. Needs Chromium (Debian: chromium) and
Python alone. The suite does not run it.
"""
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

# Runs in the page, before its own script, and tells the page around it what it saw.
PROBE = r"""
const errors = [];
addEventListener("error", (event) => errors.push(event.message));
addEventListener("securitypolicyviolation", (event) => errors.push(`${event.violatedDirective}: ${event.blockedURI}`));
addEventListener("load", () => setTimeout(() => {
  const numbers = (text) => (text.match(/[\d.]+/g) || []).map(Number);
  const light = (colour) => colour.map((v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const colour = numbers(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour.slice(0, 3);
    }
    return [255, 255, 255];
  };
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!text || !element.getClientRects().length || getComputedStyle(element).visibility === "hidden") continue;
    const style = getComputedStyle(element), ink = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(numbers(ink).slice(0, 3)), light(behind(element))].sort((x, y) => x - y);
    if ((b + 0.05) / (a + 0.05) < 4.5) errors.push(`contrast ${((b + 0.05) / (a + 0.05)).toFixed(2)}: ${element.textContent.trim().slice(0, 40)}`);
  }
  for (const element of document.querySelectorAll("input, select, button, canvas, video, svg, [role=grid]")) {
    const named = element.getAttribute("aria-label") || element.getAttribute("aria-hidden") || element.closest("label") || (element.tagName === "BUTTON" && element.textContent.trim());
    if (!named) errors.push(`no label: ${element.outerHTML.slice(0, 60)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) errors.push(`${document.documentElement.scrollWidth} pixels wide`);
  parent.postMessage({ width: innerWidth, cells: document.querySelectorAll(".map [data-layer].cell").length, errors: [...new Set(errors)] }, "*");
}, 1500));
"""
FRAME = """<!doctype html><body><iframe src="page.html" width="{width}" height="900"></iframe><pre id="seen"></pre>
<script>addEventListener("message", (event) => {{ document.getElementById("seen").textContent = JSON.stringify(event.data); }});</script>"""


def look(chromium, page, width, dark):
    """What the page told: {width, cells, errors}."""
    nonce = re.search(r'<script nonce="([0-9a-f]+)">', page)
    if nonce is None:
        sys.exit("not a page of calibatt report")
    probed = page.replace("</title>", f'</title><script nonce="{nonce.group(1)}">{PROBE}</script>', 1)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("page.html", probed), ("frame.html", FRAME.format(width=width))):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)
        command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile", "--window-size=1400,1000",
                   f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--virtual-time-budget=6000", "--dump-dom",
                   f"file://{folder}/frame.html"]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False).stdout
    told = re.search(r'<pre id="seen">(.*?)</pre>', seen, re.S)
    if told is None or not told.group(1):
        return {"width": width, "cells": 0, "errors": ["the page did not load"]}
    return json.loads(html.unescape(told.group(1)))


def main():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None or len(sys.argv) < 2:
        sys.exit(__doc__ if chromium else "tools/check_page.py needs Chromium: apt-get install chromium")
    found = 0
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            page = file.read()
        for width in (1280, 400):
            for dark in (False, True):
                seen = look(chromium, page, width, dark)
                found += len(seen["errors"])
                print(f"{path}, {width} pixels, {'dark' if dark else 'light'}: {seen['cells']} cells, {'; '.join(seen['errors']) or 'nothing found'}")
    sys.exit(1 if found else 0)


main()
