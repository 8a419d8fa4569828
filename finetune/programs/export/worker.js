// Reads pictures and runs the model, beside the page: it stays alive while this computes.

import { classes, cropped, normalised, resized, sizeOf } from "./pixels.js";

const MAX_PIXELS = 2 ** 25; // finetune.inference shows larger pictures in windows
let model, session, ort;

class Mistake extends Error {} // of the user's: the message says all

const ready = load();
ready.then(
  () => postMessage({ ready: true, model }),
  (error) => postMessage({ failed: describe(error) }),
);

async function load() {
  if (typeof WebAssembly !== "object") {
    throw new Mistake("This browser has no WebAssembly, which the model needs. Try another one.");
  }
  model = await (await fetched("model.json")).json();
  try {
    ort = await import(new URL(`${model.runtime}ort.wasm.bundle.min.mjs`, self.location.href));
  } catch {
    throw new Mistake(`onnxruntime-web cannot be loaded from ${model.runtime}: is there a network?`);
  }
  const wasm = new URL(`${model.runtime}ort-wasm-simd-threaded.wasm`, self.location.href).href;
  ort.env.wasm.wasmPaths = { wasm };
  // Threads share memory, for which the server must isolate the page from others.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? navigator.hardwareConcurrency : 1;
  const bytes = new Uint8Array(await (await fetched("model.onnx")).arrayBuffer());
  session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Mistake(`${name} cannot be loaded (${response.status}).`);
  return response;
}

self.onmessage = async ({ data: { file, number } }) => {
  try {
    await ready;
    const begun = performance.now();
    const { bitmap, rgb, size } = await pixelsOf(file);
    const mask = await segmented(rgb, size);
    const seconds = (performance.now() - begun) / 1000;
    postMessage({ number, bitmap, mask, size, seconds }, [bitmap, mask.buffer]);
  } catch (error) {
    postMessage({ number, failed: describe(error) });
  }
};

function describe(error) {
  if (error instanceof Mistake) return error.message;
  const text = String(error?.message ?? error);
  if (error instanceof RangeError || /memory|bad_alloc|allocat|out of bounds/i.test(text)) {
    return "The picture needs more memory than the browser gives. Make it smaller and try again.";
  }
  return `The model could not be run (${text}).`;
}

/** The pixels of a file: upright, its colours as they are stored, without transparency. */
async function pixelsOf(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Mistake(`${file.name ?? "The file"} is no picture that this browser can read.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    throw new Mistake(
      `${width} x ${height} pixels are too many: up to 33 million are shown here. Make it smaller.`,
    );
  }
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  let rgba = context.getImageData(0, 0, width, height).data;
  // A canvas multiplies colours with their opacity, and dividing again does not bring them back.
  if (isTransparent(rgba)) rgba = straight(bitmap) ?? rgba;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return { bitmap, rgb, size: [height, width] };
}

function isTransparent(rgba) {
  for (let i = 3; i < rgba.length; i += 4) if (rgba[i] !== 255) return true;
  return false;
}

/** RGBA as stored, through a texture; null where there is no WebGL or the picture is too large. */
function straight(bitmap) {
  const { width, height } = bitmap;
  const gl = new OffscreenCanvas(1, 1).getContext("webgl2");
  if (!gl || Math.max(width, height) > gl.getParameter(gl.MAX_TEXTURE_SIZE)) return null;
  gl.pixelStorei(gl.UNPACK_PREMULTIPLY_ALPHA_WEBGL, false);
  gl.pixelStorei(gl.UNPACK_COLORSPACE_CONVERSION_WEBGL, gl.NONE);
  gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
  gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
  const target = gl.getParameter(gl.TEXTURE_BINDING_2D);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, target, 0);
  const rgba = new Uint8Array(width * height * 4);
  gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, rgba);
  const failed = gl.getError() !== gl.NO_ERROR;
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return failed ? null : rgba;
}

/** The class of each pixel. Pictures below the model's smallest side are padded. */
async function segmented(rgb, size) {
  const shown = sizeOf(model.sizes, ...size);
  const padded = shown.map((side) => Math.max(side, model.smallest_side));
  const pixels = resized(rgb, size, shown);
  const values = normalised(pixels, shown, padded, model.mean, model.std);
  const input = new ort.Tensor("float32", values, [1, 3, ...padded]);
  const { logits } = await session.run({ pixel_values: input });
  const [, labels, ...shape] = logits.dims;
  let found = logits.data;
  let foundShape = shape;
  if (padded[0] !== shown[0] || padded[1] !== shown[1]) {
    found = cropped(found, labels, shape, padded, shown);
    foundShape = shown;
  }
  const mask = classes(found, labels, foundShape, size);
  logits.dispose();
  return mask;
}
