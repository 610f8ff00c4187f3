/* Elements of the page and words for numbers. Text is always text, never markup. */

const number = new Intl.NumberFormat("en");

/** Return the element with an id. */
export function at(id) {
  return document.getElementById(id);
}

/** Make an element with a class and a text, or with elements in it. */
export function made(tag, className = "", ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

/** Make text that only screen readers tell. */
export function unseen(text) {
  return made("span", "unseen", text);
}

/** Return a whole number with its thousands apart. */
export function grouped(n) {
  return number.format(n);
}

/** Return a number of things: 1 document, 2 documents. */
export function counted(n, one, many = `${one}s`) {
  return `${grouped(n)} ${n === 1 ? one : many}`;
}

/** Return a number with its sign, also where it is positive. */
export function signed(value, digits) {
  const text = value.toFixed(digits);
  return Number(text) > 0 ? `+${text}` : text.replace(/^-(?=[0.]*$)/, "").replace("-", "−");
}

/** Put a sentence where it is read out, as an error or not. */
export function say(element, text, isError = false) {
  element.textContent = text;
  element.classList.toggle("error", isError);
}
