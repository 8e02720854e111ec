"use strict";
// What all parts of the page share. Text from the model reaches the page as text nodes alone, never as HTML.
const model = JSON.parse(document.getElementById("model").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
// make("p", {class: "muted"}, "text", element): a function among the attributes listens to the event of its name.
function make(tag, attributes = {}, ...children) {
  return build(document.createElement(tag), attributes, children);
}
function makeSvg(tag, attributes = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}
// Little-endian, as it is written.
function numbersOf(base64) {
  const bytes = bytesOf(base64);
  const numbers = new Uint16Array(bytes.length / 2);
  for (let i = 0; i < numbers.length; ++i) numbers[i] = bytes[2 * i] | (bytes[2 * i + 1] << 8);
  return numbers;
}

const minus = (text) => text.replace("-", "\u2212");
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
const small = (value) => (value === 0 ? "0" : value >= 0.001 && value < 1000 ? String(Number(value.toPrecision(3))) : minus(value.toExponential(1)));
const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : 0);

// From nothing to much: towards the page's ink, so that much stands out in light and in dark.
const stops = {
  light: [[237, 242, 249], [163, 196, 234], [78, 137, 211], [28, 82, 160], [11, 40, 88]],
  dark: [[36, 42, 49], [35, 72, 122], [56, 117, 196], [131, 183, 244], [226, 239, 255]],
};
function rampColour(fraction) {
  const list = dark.matches ? stops.dark : stops.light;
  const place = Math.min(Math.max(fraction, 0), 1) * (list.length - 1);
  const stop = Math.min(Math.floor(place), list.length - 2);
  return list[stop].map((from, i) => Math.round(from + (list[stop + 1][i] - from) * (place - stop)));
}
const rgb = (colour) => `rgb(${colour.join(",")})`;
// Black or white, whichever has the higher contrast (WCAG 2.1).
function inkOn(colour) {
  const [r, g, b] = colour.map((value) => (value / 255 <= 0.04045 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}
function themeColour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

// draw() soon, and whenever the element's width or the colour scheme changes: in a frame of its own, since it changes sizes.
function drawAgain(element, draw) {
  let width = -1;
  new ResizeObserver(() => requestAnimationFrame(() => {
    if (element.clientWidth === width) return;
    width = element.clientWidth;
    if (width > 0) draw();
  })).observe(element);
  dark.addEventListener("change", () => draw());
}
