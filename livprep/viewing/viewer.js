// The page of `livprep view`: niivue shows the scan, its labels and channels; sliders change how.
"use strict";

const byId = (id) => document.getElementById(id);
const url = (name) => `volume/${name}.nii`;

async function start() {
  const scene = await (await fetch("case.json")).json();
  byId("case").textContent = scene.case;
  byId("grid").textContent =
    `${scene.shape_zyx.join(" × ")} voxels of ${scene.spacing_mm.map((mm) => +mm.toFixed(3)).join(" × ")} mm (z, y, x)`;
  const nv = new niivue.Niivue({
    isRadiologicalConvention: true, // the patient's right on the left, as radiologists look at slices
    sagittalNoseLeft: true,
    isSliceMM: true,
    isOrientationTextVisible: true,
    backColor: [0, 0, 0, 1],
    crosshairColor: [0.34, 0.71, 0.91, 0.9],
    crosshairWidth: 0.25,
    showAllOrientationMarkers: true,
    fontColor: [0.95, 0.95, 0.95, 1],
    dragAndDropEnabled: false,
    loadingText: "",
    multiplanarShowRender: niivue.SHOW_RENDER.ALWAYS,
  });
  nv.onLocationChange = (at) => showLocation(scene, nv, at);
  await nv.attachToCanvas(byId("gl"));
  const low = scene.window.wl - scene.window.ww / 2;
  await nv.loadVolumes([
    { url: url("hu"), name: "hu.nii", colormap: "gray", cal_min: low, cal_max: low + scene.window.ww },
    ...scene.labels.map((name) => ({ url: url(name), name: `${name}.nii`, opacity: 0.45 })),
  ]);
  for (const volume of nv.volumes.slice(1)) volume.setColormapLabel(colors(scene.classes));
  nv.setInterpolation(false);
  nv.updateGLVolume();
  addViews(nv);
  addWindows(nv, scene);
  addLabels(nv, scene);
  addChannels(nv, scene);
  moveToLabel(nv);
  setView(nv, "slices + 3D");
  document.body.dataset.ready = "yes";
  window.livprepViewer = nv;
}

function colors(classes) {
  const column = (k) => classes.map((entry) => entry.rgb[k]);
  return {
    R: column(0), G: column(1), B: column(2),
    A: classes.map((entry) => (entry.value === 0 ? 0 : 255)),
    I: classes.map((entry) => entry.value),
    labels: classes.map((entry) => entry.name),
  };
}

// --- view ---

const VIEWS = { "slices + 3D": "sliceTypeMultiplanar", axial: "sliceTypeAxial", coronal: "sliceTypeCoronal",
  sagittal: "sliceTypeSagittal", "3D": "sliceTypeRender" };

function addViews(nv) {
  for (const name of Object.keys(VIEWS)) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = button.dataset.view = name;
    button.addEventListener("click", () => setView(nv, name));
    byId("views").append(button);
  }
  const scan = byId("scan");
  scan.addEventListener("input", () => applyScan(nv));
}

function setView(nv, name) {
  for (const button of byId("views").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.view === name));
  }
  nv.setSliceType(nv[VIEWS[name]]);
  document.body.dataset.view = name;
  applyScan(nv);
}

// In the 3D view the scan would hide its own labels: it fades there, and only there.
function applyScan(nv) {
  const value = Number(byId("scan").value);
  byId("scan-out").textContent = value.toFixed(2);
  nv.setOpacity(0, document.body.dataset.view === "3D" ? value : 1);
}

// --- window ---

function addWindows(nv, scene) {
  const select = byId("window");
  select.append(new Option("custom", ""));
  for (const entry of scene.windows) {
    select.append(new Option(`${entry.name} (${entry.wl}/${entry.ww})`, JSON.stringify([entry.wl, entry.ww])));
  }
  const set = (wl, ww) => {
    byId("wl").value = wl;
    byId("ww").value = ww;
    byId("wl-out").textContent = `${Math.round(wl)} HU`;
    byId("ww-out").textContent = `${Math.round(ww)} HU`;
    const scan = nv.volumes[0];
    scan.cal_min = wl - ww / 2;
    scan.cal_max = wl + ww / 2;
    nv.updateGLVolume();
    const fitting = [...select.options].find((option) => option.value === JSON.stringify([wl, ww]));
    select.value = fitting ? fitting.value : "";
  };
  select.addEventListener("change", () => select.value && set(...JSON.parse(select.value)));
  for (const id of ["wl", "ww"]) {
    byId(id).addEventListener("input", () => set(Number(byId("wl").value), Number(byId("ww").value)));
  }
  nv.onIntensityChange = (volume) => {
    if (volume !== nv.volumes[0]) return;
    const [low, high] = [volume.cal_min, volume.cal_max];
    byId("wl").value = (low + high) / 2;
    byId("ww").value = high - low;
    byId("wl-out").textContent = `${Math.round((low + high) / 2)} HU`;
    byId("ww-out").textContent = `${Math.round(high - low)} HU`;
    select.value = "";
  };
  set(scene.window.wl, scene.window.ww);
}

// --- labels ---

function addLabels(nv, scene) {
  const box = byId("labels");
  box.hidden = scene.labels.length === 0;
  scene.labels.forEach((name, k) => {
    const volume = nv.volumes[k + 1];
    const label = document.createElement("label");
    const output = document.createElement("output");
    const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 1, step: 0.05, id: name });
    input.value = 0.45;
    const apply = () => {
      output.textContent = Number(input.value).toFixed(2);
      nv.setOpacity(nv.volumes.indexOf(volume), Number(input.value)); // a channel may have come below it
    };
    input.addEventListener("input", apply);
    label.append(name, " ", output, input);
    box.append(label);
    apply();
  });
  for (const entry of scene.classes.filter((each) => each.value > 0)) {
    const key = document.createElement("span");
    key.className = "key";
    key.style.background = `rgb(${entry.rgb.join(",")})`;
    box.append(key, `${entry.name} `);
  }
}

// The crosshair starts at the middle of the labels.
function moveToLabel(nv) {
  const labels = nv.volumes[1];
  if (!labels) return;
  const [nx, ny] = labels.hdr.dims.slice(1, 3);
  let [count, x, y, z] = [0, 0, 0, 0];
  for (let k = 0; k < labels.img.length; k += 7) {
    if (!labels.img[k]) continue;
    count += 1;
    x += k % nx;
    y += Math.floor(k / nx) % ny;
    z += Math.floor(k / (nx * ny));
  }
  if (count) {
    const at = [x, y, z].map((sum, axis) => (sum / count + 0.5) / labels.hdr.dims[axis + 1]);
    const affine = labels.hdr.affine;
    const voxel = [x, y, z].map((sum) => sum / count);
    const mm = affine.slice(0, 3).map((row) => row[0] * voxel[0] + row[1] * voxel[1] + row[2] * voxel[2] + row[3]);
    nv.scene.crosshairPos = nv.mm2frac ? nv.mm2frac(mm) : at;
    nv.createOnLocationChange();
    nv.drawScene();
  }
}

// --- channels that are no plain window ---

function addChannels(nv, scene) {
  byId("channel-box").hidden = scene.channels.length === 0;
  const select = byId("channel");
  select.append(new Option("none", ""), ...scene.channels.map((name) => new Option(name, name)));
  const loaded = new Map(); // a channel that was shown once is hidden, not removed
  const fade = () => {
    const opacity = Number(byId("channel-opacity").value);
    byId("channel-out").textContent = opacity.toFixed(2);
    for (const [name, volume] of loaded) nv.setOpacity(nv.volumes.indexOf(volume), name === select.value ? opacity : 0);
  };
  const show = async () => {
    const name = select.value;
    if (name && !loaded.has(name)) {
      const volume = await nv.addVolumeFromUrl({ url: url(`channel/${name}`), name: "channel.nii", colormap: "gray",
        cal_min: 0, cal_max: 255, opacity: 0 });
      nv.setVolume(volume, 1); // above the scan, below the labels
      loaded.set(name, volume);
    }
    fade();
    document.body.dataset.channel = select.value;
  };
  select.addEventListener("change", show);
  byId("channel-opacity").addEventListener("input", fade);
  fade();
  select.value = scene.channel;
  if (scene.channel) show();
}

// --- where the crosshair is, in words ---

function showLocation(scene, nv, at) {
  const [x, y, z] = at.mm;
  const hu = at.values[0]?.value;
  const value = at.values[1]?.value;
  const found = scene.classes.find((entry) => entry.value === value);
  byId("status").textContent =
    `right ${x.toFixed(1)}, front ${y.toFixed(1)}, up ${z.toFixed(1)} mm: ${Math.round(hu)} HU` +
    (found && scene.labels.length ? `, ${found.name}` : "");
  window.livprepLocation = { mm: [x, y, z], hu, label: value };
}

start().catch((error) => {
  byId("status").textContent = `cannot show the case: ${error.message}`;
  document.body.dataset.ready = "failed";
});
