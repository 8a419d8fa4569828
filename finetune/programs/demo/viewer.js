// Runs once the viewer is on the page. Gradio gives `element`, its root, `props`, whose `value` is
// what answers.py says of a picture, and `watch`, which calls back when that changes. All drawing
// is done here, so that the server is asked once a picture.
const find = (selector) => element.querySelector(selector);
const status = find('.status'), problem = find('.problem'), found = find('.found');
const opacity = find('.opacity input'), everything = find('.all'), ramp = find('.ramp');
const agreement = find('.agreement'), shelf = find('.panels');
const LABEL = 'Choose a picture, take one, or try an example: its classes appear here.';

// From unsure to sure; lightness grows steadily, so that it reads in grey as well.
const STOPS = [[38, 16, 78], [96, 36, 120], [186, 62, 96], [240, 128, 60], [252, 236, 150]];
const RAMP = new Uint8Array(3 * 256);
for (let i = 0; i < 256; i++) {
  const at = i / 255 * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2);
  for (let c = 0; c < 3; c++) {
    RAMP[3 * i + c] = Math.round(STOPS[low][c] + (at - low) * (STOPS[low + 1][c] - STOPS[low][c]));
  }
}
ramp.querySelector('i').style.background =
  'linear-gradient(90deg, ' + STOPS.map((stop) => 'rgb(' + stop + ')').join(', ') + ')';

let panels = [];      // one a model
let only = null;      // the name of the class that is shown alone
let view = 'classes';
let turn = 0;         // counts answers: an earlier one may arrive later
let drawing = false;  // asked for, not yet done

const percent = (share) =>
  share > 0 && share < 0.0005 ? '< 0.1 %' : (100 * share).toFixed(1) + ' %';

function make(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

async function fetched(file) {
  const answer = await fetch(file.url);
  if (!answer.ok) throw new Error('the server says ' + answer.status);
  return answer;
}

async function unpacked(file) {
  const stream = (await fetched(file)).body.pipeThrough(new DecompressionStream('deflate'));
  return new Response(stream).arrayBuffer();
}

async function show(value) {
  const mine = ++turn;
  problem.hidden = !(value && value.problem);
  problem.textContent = value && value.problem || '';
  if (!value || value.problem) {
    clear();
    status.hidden = !!value;
    status.textContent = LABEL;
    return;
  }
  try {
    const picture = await createImageBitmap(await (await fetched(value.picture)).blob());
    const made = await Promise.all(value.results.map((result) => panel(result, value, picture)));
    if (mine !== turn) return made.forEach((one) => URL.revokeObjectURL(one.address));
    clear();
    panels = made;
  } catch (error) {
    if (mine !== turn) return;
    clear();
    status.hidden = true;
    problem.textContent = 'The answer could not be fetched (' + error.message + '). Choose the picture again.';
    problem.hidden = false;
    return;
  }
  shelf.append(...panels.map((one) => one.root));
  agreement.hidden = value.agreement === null;
  if (value.agreement !== null) {
    agreement.textContent = 'The models agree on ' + percent(value.agreement) + ' of the pixels.';
  }
  const seconds = value.results.map((result) => result.seconds.toFixed(2) + ' s').join(' and ');
  status.textContent = value.name + ': ' + value.size.join(' × ') + ' pixels, ' + seconds + '.';
  status.hidden = false;
  found.hidden = false;
  isolate(null);
  // On a phone the answer begins below the picture.
  if (element.getBoundingClientRect().top > 0.6 * innerHeight) element.scrollIntoView();
}

function clear() {
  for (const one of panels) URL.revokeObjectURL(one.address);
  panels = [];
  shelf.replaceChildren();
  found.hidden = true;
}

async function panel(result, value, picture) {
  const [ids, sure, mask] = await Promise.all([
    unpacked(result.ids), unpacked(result.confidence), fetched(result.mask).then((file) => file.blob()),
  ]);
  const [width, height] = value.drawn;
  const canvas = make('canvas', {width, height, role: 'img', style: '--aspect: ' + width / height});
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(picture, 0, 0, width, height);
  const one = {
    canvas, context, classes: result.classes, summary: result.summary,
    ids: result.id_bytes === 1 ? new Uint8Array(ids) : new Uint16Array(ids),
    sure: new Uint8Array(sure),
    picture: context.getImageData(0, 0, width, height).data,
    image: context.createImageData(width, height),
    names: new Map(result.classes.map((known) => [known.id, known.name])),
    palette: new Uint8Array(3 * (1 + Math.max(...result.classes.map((known) => known.id)))),
    address: URL.createObjectURL(mask),
  };
  for (const known of result.classes) one.palette.set(known.color, 3 * known.id);
  const stem = value.name.replace(/\.[^.]*$/, '') +
    (value.results.length > 1 ? '-' + result.model.replace(/[^\w.-]+/g, '-') : '');

  const point = make('p', {class: 'point'});
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * width);
    const y = Math.floor((event.clientY - box.top) / box.height * height);
    return Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1);
  };
  const tell = (event) => {
    const i = at(event);
    point.textContent = one.names.get(one.ids[i]) + ', ' + Math.round(one.sure[i] / 2.55) + ' % sure';
  };
  canvas.addEventListener('pointermove', tell);
  canvas.addEventListener('pointerleave', () => { point.textContent = ''; });
  canvas.addEventListener('click', (event) => {
    tell(event);
    isolate(one.names.get(one.ids[at(event)]));
  });

  one.buttons = result.classes.map((known) => {
    const swatch = make('i', {'aria-hidden': 'true'});
    swatch.style.background = 'rgb(' + known.color + ')';
    const button = make('button', {type: 'button', class: 'class'}, swatch, known.name);
    button.addEventListener('click', () => isolate(known.name));
    return button;
  });
  const rows = result.classes.map((known, i) => make('tr', {},
    make('th', {scope: 'row'}, one.buttons[i]),
    make('td', {}, percent(known.share)), make('td', {}, known.pixels.toLocaleString('en'))));
  const head = ['Class', 'Share', 'Pixels'].map((title) => make('th', {scope: 'col'}, title));
  const overlay = make('button', {type: 'button'}, 'Download overlay');
  overlay.addEventListener('click', () => saveOverlay(one, stem + '-overlay.png'));
  one.root = make('section', {class: 'panel', 'aria-label': result.model},
    ...(value.results.length > 1 ? [make('h2', {}, result.model)] : []),
    make('div', {class: 'sheet'},
      make('figure', {}, canvas, point),
      make('div', {},
        make('table', {}, make('caption', {}, 'Areas: choose one to see it alone'),
          make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...rows)),
        make('div', {class: 'downloads'},
          make('a', {class: 'download', href: one.address, download: stem + '-mask.png'},
            'Download mask (class ids)'), overlay))));
  return one;
}

// Shows a class alone; all of them if it is alone already, or null.
function isolate(name) {
  only = name === only ? null : name;
  everything.disabled = only === null;
  for (const one of panels) {
    one.classes.forEach((known, i) =>
      one.buttons[i].setAttribute('aria-pressed', String(known.name === only)));
    const known = one.classes.find((each) => each.name === only);
    one.canvas.setAttribute('aria-label', only === null ? one.summary
      : known ? known.name + ' alone, ' + percent(known.share) : only + ' alone, not found');
  }
  draw();
}

function draw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    panels.forEach(paint);
  });
}

function paint(one) {
  const {ids, sure, picture, image} = one, out = image.data, share = opacity.value / 100;
  const colors = view === 'classes' ? one.palette : RAMP, which = view === 'classes' ? ids : sure;
  const known = one.classes.find((each) => each.name === only);
  const id = only === null ? -1 : known ? known.id : -2;
  for (let i = 0, j = 0; i < ids.length; i++, j += 4) {
    if (id !== -1 && ids[i] !== id) {  // grey, and darker
      out[j] = out[j + 1] = out[j + 2] =
        0.5 * (0.3 * picture[j] + 0.59 * picture[j + 1] + 0.11 * picture[j + 2]);
    } else {
      const c = 3 * which[i];
      out[j] = picture[j] + share * (colors[c] - picture[j]);
      out[j + 1] = picture[j + 1] + share * (colors[c + 1] - picture[j + 1]);
      out[j + 2] = picture[j + 2] + share * (colors[c + 2] - picture[j + 2]);
    }
    out[j + 3] = 255;
  }
  one.context.putImageData(image, 0, 0);
}

// The picture as it is shown, with what its colours stand for below it.
function saveOverlay(one, name) {
  const {width, height} = one.canvas, size = Math.max(12, Math.round(width / 60)), line = 1.8 * size;
  const sheet = make('canvas', {width, height}), context = sheet.getContext('2d');
  const font = size + 'px system-ui, sans-serif';
  context.font = font;
  const entries = view === 'classes'
    ? one.classes.filter((known) => only === null || known.name === only)
        .map((known) => [known.name, known.color])
    : STOPS.map((stop, i) => [Math.round(100 * i / (STOPS.length - 1)) + ' % sure', stop]);
  let x = size, y = height + size / 2;
  const places = entries.map(([text]) => {
    const needed = 1.5 * size + context.measureText(text).width;
    if (x > size && x + needed > width) [x, y] = [size, y + line];
    const place = [x, y];
    x += needed + 1.5 * size;
    return place;
  });
  sheet.height = Math.ceil(y + line);
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, sheet.height);
  context.drawImage(one.canvas, 0, 0);
  context.font = font;
  context.textBaseline = 'middle';
  entries.forEach(([text, color], i) => {
    const [left, top] = places[i];
    context.fillStyle = 'rgb(' + color + ')';
    context.fillRect(left, top + (line - size) / 2, size, size);
    context.fillStyle = '#1c1e21';
    context.fillText(text, left + 1.5 * size, top + line / 2);
  });
  sheet.toBlob((blob) => {
    const address = URL.createObjectURL(blob);
    make('a', {href: address, download: name}).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  });
}

opacity.addEventListener('input', draw);
everything.addEventListener('click', () => {
  isolate(null);
  opacity.focus();  // the button cannot have it any more
});
element.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && only !== null) isolate(null);
});
for (const button of element.querySelectorAll('.view')) {
  button.addEventListener('click', () => {
    view = button.dataset.view;
    for (const other of element.querySelectorAll('.view')) {
      other.setAttribute('aria-pressed', String(other === button));
    }
    ramp.hidden = view !== 'confidence';
    draw();
  });
}
// Gradio shows examples as pictures without a name, and may build them anew.
const label = () => document.querySelectorAll('#examples button.gallery-item').forEach(
  (button, i) => button.setAttribute('aria-label', 'Example: ' + props.examples[i]));
if (props.examples.length) {
  label();
  new MutationObserver(label).observe(document.body, {childList: true, subtree: true});
}

watch('value', () => show(props.value));
if (props.value) show(props.value);
