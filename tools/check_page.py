"""Looks at a page of `calibatt report` in Chromium: errors, width, contrast, labels. Usage: tools/check_page.py PAGE.html…

At 1280 and 400 pixels, in light and in dark. Prints what it finds and exits with 1 if there is something. Needs Chromium (Debian: chromium) and
Python alone. The suite does not run it.
"""
import os
import sys

from browser import Browser

# What is wrong with the page as it is shown, and how many cells its maps have.
PROBE = r"""(() => {
  const errors = [];
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
  return { cells: document.querySelectorAll(".map [data-layer].cell").length, errors: [...new Set(errors)] };
})()"""


def look(browser, path, width, dark):
    """{cells, errors} of the page."""
    browser.look(width, 900, dark)
    browser.open("file://" + os.path.abspath(path))
    seen = browser.js(PROBE)
    return {"cells": seen["cells"], "errors": seen["errors"] + browser.problems()}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    found = 0
    with Browser() as browser:
        for path in sys.argv[1:]:
            for width in (1280, 400):
                for dark in (False, True):
                    seen = look(browser, path, width, dark)
                    found += len(seen["errors"])
                    print(f"{path}, {width} pixels, {'dark' if dark else 'light'}: {seen['cells']} cells, {'; '.join(seen['errors']) or 'nothing found'}")
    sys.exit(1 if found else 0)


main()
