/* The one or two sides that are compared: a model and how it reads documents, as fields of the page. */

import { at, made } from "./elements.js";

export const NAMES = ["A", "B"];
const CUTS = { truncate: "cut off", chunk: "read in windows" };

let offered = [];

/** Show the models that a server offers, and keep the choice of before. */
export function offer(models) {
  offered = models;
  for (const name of NAMES) {
    const chosen = at(`model-${name}`).value;
    at(`model-${name}`).replaceChildren(
      ...models.map((model) => {
        const option = made("option", "", `${model.id} (${model.precision}, ${model.device})`);
        option.value = model.id;
        return option;
      }),
    );
    const i = name === "B" ? Math.min(1, models.length - 1) : 0;
    choose(name, models.some((model) => model.id === chosen) ? chosen : models[i].id);
  }
}

/** Choose the model of a side, and say what its settings are if they are left alone. */
export function choose(name, id) {
  const model = offered.find((one) => one.id === id);
  at(`model-${name}`).value = id;
  at(`max-length-${name}`).max = model.longest;
  at(`max-length-${name}`).placeholder = model.max_model_len;
  at(`long-documents-${name}`).options[0].textContent = `as the server does: ${CUTS[model.long_documents]}`;
}

/** Return whether there are two sides. */
export function areCompared() {
  return at("compare").checked;
}

/** Return the sides as they are set: their names, and the models' own cards. */
export function sides() {
  return NAMES.slice(0, areCompared() ? 2 : 1).map((name) => ({
    name,
    model: offered.find((model) => model.id === at(`model-${name}`).value),
    maxLength: at(`max-length-${name}`).value,
    longDocuments: at(`long-documents-${name}`).value,
  }));
}

/** Set the sides of a link. Returns the names of models that are not offered here; another one is taken for them. */
export function set(wanted) {
  at("compare").checked = wanted.length > 1;
  const missing = [];
  wanted.forEach((side, i) => {
    const isOffered = offered.some((model) => model.id === side.model);
    if (isOffered) choose(NAMES[i], side.model);
    else missing.push(side.model);
    at(`max-length-${NAMES[i]}`).value = side.maxLength;
    at(`long-documents-${NAMES[i]}`).value = side.longDocuments;
  });
  return missing;
}

/** Return a side in a few words. */
export function described(side) {
  const settings = [
    side.maxLength && `${side.maxLength} tokens`,
    side.longDocuments && CUTS[side.longDocuments],
  ].filter(Boolean);
  const { id, precision } = side.model;
  return [id.endsWith(`@${precision}`) ? id : `${id} (${precision})`, ...settings].join(", ");
}

/**
 * Return the body of a request to one side. What the server does anyway is left out.
 *
 * A side without a calibration gives sigmoids where probabilities are wanted; the answer says which they are.
 */
export function bodyOf(side, query, documents, kind, top) {
  return {
    ...(offered.length > 1 && { model: side.model.id }),
    query,
    documents,
    ...(top && { top_n: Number(top) }),
    ...(side.maxLength && { max_length: Number(side.maxLength) }),
    ...(side.longDocuments && { long_documents: side.longDocuments }),
    ...scale(side, kind),
  };
}

function scale(side, kind) {
  if (kind === "logit") return {};
  return kind === "probability" && side.model.calibrated ? { calibrated: true } : { normalize: true };
}
