// Small helpers of the other files. Texts become text nodes, always: nothing here reads HTML.

function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

// Any direction of writing, line breaks kept.
function prose(tag, text) {
  return element(tag, { class: "prose", dir: "auto" }, text);
}

function figure(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0"; // -0 too
  if (Math.abs(value) < 0.5 * 10 ** -digits) return value.toExponential(1);
  if (Number.isInteger(value) || Math.abs(value) >= 10000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return value.toFixed(Math.abs(value) >= 100 ? 1 : digits);
}

function signed(value, digits = 3) {
  return (value > 0 ? "+" : "") + figure(value, digits);
}

async function unpacked(base64) {
  const binary = atob(base64);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i); // several times as fast as Uint8Array.from
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
