/*
 * The state of the page as a link. It is in the fragment, which browsers do not send, so no server's log has it.
 * The key is not a part of it. The fragment is #v1. and the state as JSON, by zlib and base64url; zlib's checksum
 * finds a damaged link.
 */

const VERSION = 1;
export const MAX_CHARS = 8000;
const FORM = /^#v(\d+)\.([\w-]*)$/;

/** Return the fragment of a state. Throws if it would have more than MAX_CHARS characters. */
export async function fragmentOf(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state));
  const packed = await through(bytes, new CompressionStream("deflate"));
  const text = btoa(Array.from(packed, (byte) => String.fromCharCode(byte)).join(""));
  const fragment = `#v${VERSION}.${text.replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
  if (fragment.length > MAX_CHARS) {
    throw new Error(
      `The link would have ${fragment.length} characters, and ${MAX_CHARS} is the limit. Leave out some documents.`,
    );
  }
  return fragment;
}

/** Return the state of a fragment, undefined if it has none. Throws for a damaged one and for another version. */
export async function stateOf(fragment) {
  if (!fragment.startsWith("#v")) return undefined;
  const [, version, text] = FORM.exec(fragment) ?? [];
  if (version !== undefined && Number(version) !== VERSION) {
    throw new Error(
      `This link is of version ${version} of the playground, and this server's is ${VERSION}. ` +
        "Open it on the server that it is from.",
    );
  }
  try {
    const packed = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (sign) => sign.charCodeAt(0));
    const bytes = await through(packed, new DecompressionStream("deflate"));
    return checked(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    throw new Error("This link is damaged, perhaps cut off. Copy it again, whole.");
  }
}

/** Return a state if it has the form that this page writes. Throws otherwise. */
function checked(state) {
  const isText = (value) => typeof value === "string";
  const isFine =
    [state.query, state.documents, state.kind, state.top].every(isText) &&
    [1, 2].includes(state.sides.length) &&
    state.sides.every((side) => [side.model, side.maxLength, side.longDocuments].every(isText));
  if (!isFine) throw new Error("a value has another type");
  return state;
}

async function through(bytes, transform) {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
