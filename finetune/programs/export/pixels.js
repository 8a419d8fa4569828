// What finetune.inference does to pixels, to the same numbers: Pillow's resize, the normalisation,
// and the class of each pixel of the upsampled logits. Pure functions, no DOM.

/** Height and width that a picture is resized to: finetune.inference.Protocol.size. */
export function sizeOf(sizes, height, width) {
  if (sizes.fixed_size) return sizes.fixed_size;
  if (!sizes.shortest_edge) return [height, width];
  const { shortest_edge: shortest, longest_edge: longest, size_divisor: divisor } = sizes;
  const short = Math.min(height, width);
  const long = Math.max(height, width);
  if (divisor > 1) {
    const factor = Math.min(shortest / short, longest ? longest / long : Infinity);
    return [height, width].map((side) => {
      const scaled = Math.max(1, Math.floor(side * factor + 0.5));
      return Math.ceil(scaled / divisor) * divisor;
    });
  }
  let found = [shortest, Math.floor((shortest * long) / short)];
  if (longest && (long / short) * shortest > longest) {
    const exact = (longest * short) / long;
    found = [roundToEven(exact), Math.floor((exact * long) / short)];
    if (found[0] === short) found = [short, long];
  }
  found = found.map((side) => Math.max(1, side));
  return height <= width ? found : found.reverse();
}

function roundToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

const PRECISION_BITS = 32 - 8 - 2; // Pillow's, of a coefficient

/** Pillow's bilinear filter: for each output pixel where it begins to read, and its weights. */
function coefficients(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  const taps = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(to);
  const counts = new Int32Array(to);
  const weights = new Int32Array(to * taps);
  const exact = new Float64Array(taps);
  for (let i = 0; i < to; i++) {
    const center = (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(from, Math.trunc(center + support + 0.5)) - start;
    let total = 0;
    for (let j = 0; j < count; j++) {
      exact[j] = Math.max(0, 1 - Math.abs((j + start - center + 0.5) * (1 / support)));
      total += exact[j];
    }
    for (let j = 0; j < count; j++) {
      weights[i * taps + j] = Math.trunc(0.5 + (exact[j] / total) * (1 << PRECISION_BITS));
    }
    starts[i] = start;
    counts[i] = count;
  }
  return { starts, counts, weights, taps };
}

/**
 * One pass of the filter along an axis.
 * @param {Uint8Array} source lines x from x step bytes; a pixel's channels are `step` neighbours
 */
function filtered(source, lines, from, to, step) {
  const { starts, counts, weights, taps } = coefficients(from, to);
  const target = new Uint8Array(lines * to * step);
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < to; i++) {
      const first = (line * from + starts[i]) * step;
      for (let c = 0; c < step; c++) {
        let sum = 1 << (PRECISION_BITS - 1);
        for (let j = 0; j < counts[i]; j++) {
          sum += source[first + j * step + c] * weights[i * taps + j];
        }
        const value = sum >> PRECISION_BITS;
        target[(line * to + i) * step + c] = value < 0 ? 0 : value > 255 ? 255 : value;
      }
    }
  }
  return target;
}

/** RGB bytes resized as Pillow resizes them: across, then down, rounded to bytes in between. */
export function resized(rgb, [height, width], [newHeight, newWidth]) {
  let pixels = rgb;
  if (newWidth !== width) pixels = filtered(pixels, height, width, newWidth, 3);
  if (newHeight !== height) pixels = filtered(pixels, 1, height, newHeight, newWidth * 3);
  return pixels;
}

/**
 * RGB bytes as (1, 3, H, W) float32, padded right and below with the mean colour (zeros).
 * The arithmetic is float32's, in PyTorch's order.
 */
export function normalised(rgb, [height, width], [padHeight, padWidth], mean, std) {
  const values = new Float32Array(3 * padHeight * padWidth);
  const f = Math.fround;
  for (let c = 0; c < 3; c++) {
    const table = Float32Array.from({ length: 256 }, (_, byte) =>
      f(f(f(byte / 255) - f(mean[c])) / f(std[c])),
    );
    for (let y = 0; y < height; y++) {
      const row = (c * padHeight + y) * padWidth;
      for (let x = 0; x < width; x++) values[row + x] = table[rgb[(y * width + x) * 3 + c]];
    }
  }
  return values;
}

/** Where the pixels of `to` lie between those of `from`: F.interpolate(align_corners=False). */
function places(from, to) {
  const below = new Int32Array(to);
  const share = new Float32Array(to);
  for (let i = 0; i < to; i++) {
    const position = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    below[i] = Math.min(Math.floor(position), from - 1);
    share[i] = position - below[i];
  }
  return { below, share };
}

/** Calls visit(y, scores) for each row of the upsampled logits; scores[x * K + k]. */
function eachRow(logits, labels, [height, width], [newHeight, newWidth], visit) {
  const down = places(height, newHeight);
  const across = places(width, newWidth);
  const narrow = new Float32Array(width * labels);
  const wide = new Float32Array(newWidth * labels);
  for (let y = 0; y < newHeight; y++) {
    const y0 = down.below[y];
    const y1 = Math.min(y0 + 1, height - 1);
    const t = down.share[y];
    for (let k = 0; k < labels; k++) {
      const above = (k * height + y0) * width;
      const under = (k * height + y1) * width;
      for (let x = 0; x < width; x++) {
        narrow[x * labels + k] = logits[above + x] * (1 - t) + logits[under + x] * t;
      }
    }
    for (let x = 0; x < newWidth; x++) {
      const left = across.below[x] * labels;
      const right = Math.min(across.below[x] + 1, width - 1) * labels;
      const s = across.share[x];
      const at = x * labels;
      for (let k = 0; k < labels; k++) {
        wide[at + k] = narrow[left + k] * (1 - s) + narrow[right + k] * s;
      }
    }
    visit(y, wide);
  }
}

/** Logits (K, h, w) upsampled to `size`, of which the upper left corner `kept` is wanted. */
export function cropped(logits, labels, shape, size, kept) {
  const found = new Float32Array(labels * kept[0] * kept[1]);
  eachRow(logits, labels, shape, size, (y, scores) => {
    if (y >= kept[0]) return;
    for (let x = 0; x < kept[1]; x++) {
      for (let k = 0; k < labels; k++) {
        found[(k * kept[0] + y) * kept[1] + x] = scores[x * labels + k];
      }
    }
  });
  return found;
}

/**
 * The class of each pixel of logits (K, h, w) upsampled to `size`, row by row: the upsampled logits
 * are never there at once. With K = 1, stock's binary head, class 1 is a logit above 0.
 */
export function classes(logits, labels, shape, size) {
  const mask = new (labels > 256 ? Uint16Array : Uint8Array)(size[0] * size[1]);
  eachRow(logits, labels, shape, size, (y, scores) => {
    const row = y * size[1];
    for (let x = 0; x < size[1]; x++) {
      const at = x * labels;
      let best = labels === 1 && scores[at] > 0 ? 1 : 0;
      for (let k = 1; k < labels; k++) if (scores[at + k] > scores[at + best]) best = k;
      mask[row + x] = best;
    }
  });
  return mask;
}

/** A mask as a PNG: class ids as its values, with the colours as a palette up to 256 classes. */
export async function png(mask, height, width, colors) {
  const bytes = mask.BYTES_PER_ELEMENT;
  const lines = new Uint8Array(height * (width * bytes + 1)); // each begins with its filter, none
  for (let y = 0; y < height; y++) {
    const line = y * (width * bytes + 1) + 1;
    for (let x = 0; x < width; x++) {
      const id = mask[y * width + x];
      if (bytes === 2) lines[line + 2 * x] = id >> 8;
      lines[line + bytes * x + bytes - 1] = id & 255;
    }
  }
  const deflated = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set(bytes === 1 ? [8, 3] : [16, 0], 8);
  const parts = [Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk("IHDR", header)];
  if (bytes === 1) parts.push(chunk("PLTE", Uint8Array.from(colors.flat())));
  parts.push(chunk("IDAT", new Uint8Array(await new Response(deflated).arrayBuffer())));
  parts.push(chunk("IEND", new Uint8Array(0)));
  return new Blob(parts, { type: "image/png" });
}

function chunk(kind, data) {
  const whole = new Uint8Array(12 + data.length);
  const view = new DataView(whole.buffer);
  view.setUint32(0, data.length);
  whole.set(new TextEncoder().encode(kind), 4);
  whole.set(data, 8);
  let crc = -1;
  for (let i = 4; i < 8 + data.length; i++) {
    crc ^= whole[i];
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  view.setUint32(8 + data.length, ~crc);
  return whole;
}
