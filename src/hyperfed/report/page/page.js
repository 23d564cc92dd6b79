'use strict';
const SYMBOLS = ['circle', 'square', 'triangle-up', 'diamond', 'triangle-down', 'cross', 'x', 'star'];
const GLYPHS = ['●', '■', '▲', '◆', '▼', '✚', '✖', '★'];
const DASHES = ['solid', 'dash', 'dashdot', 'longdash'];
const PATTERNS = ['', '/', 'x', '\\', '-', '|', '+', '.'];
const BANDS = 8; // bands of more methods than that hide the lines
const PRINT_WIDTH = 660; // CSS pixels across an A4 page within its margins
const root = document.documentElement;
const charts = [];

/** The value of a colour variable in the scheme of the moment: light-dark() is resolved for a real element only. */
function colour(name) {
  const probe = document.body.appendChild(document.createElement('span'));
  probe.style.color = `var(--${name})`;
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

/** What the buttons of a chart's section say: hidden methods and the kind of accuracy; until one is pressed, the kind may be the chart's own. */
function choices(element, own) {
  const scope = element.closest('.scope') ?? document.body;
  const off = [...scope.querySelectorAll('.method[aria-pressed="false"]')].map((b) => Number(b.dataset.method));
  const shown = scope.querySelectorAll('.method[aria-pressed="true"]').length;
  const pressed = scope.querySelector('.kind[aria-pressed="true"]')?.dataset.kind;
  return {hidden: new Set(off), shown, kind: (scope.dataset.chosen ? undefined : own) ?? pressed ?? 'both'};
}

/** One trace with its colours, marker and points: those of hidden methods, and those a logarithmic axis has no place for, are left out. */
function painted(original, {hidden, shown, kind}, log, inks) {
  const trace = structuredClone(original);
  const meta = trace.meta ?? {};
  if (meta.method !== undefined) {
    const own = inks[meta.method % 8];
    trace.visible = !hidden.has(meta.method) && (kind === 'both' || !meta.kind || meta.kind === kind);
    trace.line = {width: 2, ...trace.line, color: own};
    if (trace.mode !== 'none') trace.line.dash ??= DASHES[Math.floor(meta.method / 8) % 4];
    if (meta.kind === 'after' && kind === 'both' && meta.method < 8) trace.line.dash = 'dot'; // the next eight have these colours again
    const symbol = SYMBOLS[meta.method % 8];
    trace.marker = {size: 6, ...trace.marker, color: own, symbol: meta.kind === 'after' ? `${symbol}-open` : symbol};
    if (trace.fill) trace.visible &&= shown <= BANDS;
    if (trace.fill) trace.fillcolor = own.replace('rgb(', 'rgba(').replace(')', ', 0.15)');
  }
  if (meta.role !== undefined) {
    trace.marker = {color: inks[meta.role % 8], pattern: {shape: PATTERNS[meta.role % 8], fillmode: 'overlay', fgcolor: inks.paper, size: 7, solidity: 0.2}};
  }
  const stays = (trace.x ?? []).map((x, i) => (log !== 'x' || x > 0) && (log !== 'y' || trace.y[i] > 0) && !hidden.has(meta.methods?.[i]));
  if (stays.includes(false)) {
    for (const key of ['x', 'y', 'customdata']) trace[key] &&= trace[key].filter((_, i) => stays[i]);
  }
  return trace;
}

/** Ticks at 1, 2, 3, 5, 10, ... written out, where at least three of them lie between the points; else what Plotly finds. */
function ticks(traces, name) {
  const points = traces.filter((t) => t.visible !== false).flatMap((t) => t[name]);
  const [least, most] = [Math.min(...points), Math.max(...points)];
  const values = [...Array(19).keys()].flatMap((k) => [1, 2, 3, 5].map((d) => d * 10 ** (k - 6))).filter((v) => v >= least * 0.9 && v <= most * 1.1);
  const step = Math.ceil(values.length / 12);
  const some = values.filter((_, i) => i % step === 0);
  return some.length < 3 ? {} : {tickmode: 'array', tickvals: some, ticktext: some.map((v) => Number(v.toPrecision(1)).toLocaleString('en'))};
}

function draw({element, spec, button}, width) {
  const inks = [...Array(8).keys()].map((i) => colour(`c${i}`));
  inks.paper = colour('paper');
  const [ink, line, panel] = ['ink', 'line', 'panel'].map(colour);
  const log = button?.getAttribute('aria-pressed') === 'true' ? spec.log : '';
  const traces = spec.traces.map((t) => painted(t, choices(element, spec.layout.meta?.kind), log, inks));
  const axis = {gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true};
  const layout = structuredClone(spec.layout);
  for (const name of ['x', 'y']) {
    layout[`${name}axis`] = {...axis, ...layout[`${name}axis`]};
    if (name === spec.log) Object.assign(layout[`${name}axis`], log ? {type: 'log', ...ticks(traces, name)} : {type: 'linear'});
  }
  Object.assign(layout, {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: {color: ink, size: 12}, hoverlabel: {bgcolor: panel, font: {color: ink}},
    margin: {l: 50, r: 20, t: 12, b: 44, ...layout.margin}, dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom',
  });
  const wide = width ?? element.clientWidth;
  layout.width = spec.square ? Math.min(wide, 600) : wide;
  layout.height = spec.square ? 0.85 * layout.width : layout.height ?? (width ? 300 : Math.max(280, Math.min(400, wide * 0.75)));
  if (element._fullLayout && element._fullLayout.width !== layout.width) Plotly.purge(element); // else margins stay those of the old width
  return Plotly.react(element, traces, layout, {displayModeBar: false, responsive: false});
}

function redraw(scope, width) {
  charts.filter((c) => scope.contains(c.element)).forEach((c) => draw(c, width));
}

function press(button, on) {
  button.setAttribute('aria-pressed', String(on));
}

function listen() {
  document.addEventListener('click', ({target}) => {
    const button = target.closest('button');
    if (!button) return;
    const on = button.getAttribute('aria-pressed') !== 'true';
    if (button.classList.contains('kind')) {
      button.parentElement.querySelectorAll('.kind').forEach((b) => press(b, b === button));
      (button.closest('.scope') ?? document.body).dataset.chosen = 'yes';
    } else if (button.classList.contains('all')) {
      const methods = [...button.parentElement.querySelectorAll('.method')];
      const some = methods.some((b) => b.getAttribute('aria-pressed') === 'false');
      methods.forEach((b) => press(b, some));
    } else {
      press(button, on);
    }
    if (button.id === 'theme') root.dataset.theme = on ? 'dark' : 'light';
    redraw(button.closest('figure') ?? button.closest('.scope') ?? document.body);
  });
  const system = matchMedia('(prefers-color-scheme: dark)');
  const follow = () => {
    if (!root.dataset.theme) press(document.getElementById('theme'), system.matches);
    redraw(document.body);
  };
  system.addEventListener('change', follow);
  follow();
  let last = innerWidth;
  addEventListener('resize', () => {
    if (innerWidth !== last) redraw(document.body); // a phone's address bar changes the height only
    last = innerWidth;
  });
  let theme;
  addEventListener('beforeprint', () => {
    theme = root.dataset.theme;
    root.dataset.theme = 'light';
    redraw(document.body, PRINT_WIDTH);
  });
  addEventListener('afterprint', () => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    redraw(document.body);
  });
}

async function start() {
  document.querySelectorAll('.method').forEach((button) => {
    const i = Number(button.dataset.method);
    button.style.setProperty('--own', `var(--c${i % 8})`);
    button.querySelector('i').textContent = GLYPHS[i % 8] + (i < 8 ? '' : ['', '╌', '-·', '—'][Math.floor(i / 8) % 4]);
  });
  const library = document.getElementById('library');
  if (library) {
    const packed = Uint8Array.from(atob(library.textContent), (c) => c.charCodeAt(0));
    const text = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream('gzip'))).text();
    library.remove();
    const script = document.createElement('script');
    script.textContent = text;
    document.head.append(script);
  }
  listen();
  for (const figure of document.querySelectorAll('.chart')) {
    const spec = JSON.parse(figure.querySelector('script').textContent);
    const chart = {element: figure.querySelector('.plot'), spec, button: figure.querySelector('.log')};
    charts.push(chart);
    await draw(chart);
    await new Promise((done) => { setTimeout(done); }); // a page of many charts stays responsive
  }
  root.dataset.ready = 'yes';
}

start().catch((problem) => {
  for (const plot of document.querySelectorAll('.plot:empty')) {
    const told = document.createElement('p');
    told.className = 'warning';
    told.textContent = 'This browser cannot draw the chart; the tables hold its numbers.';
    plot.replaceWith(told);
  }
  root.dataset.ready = 'yes';
  throw problem;
});
