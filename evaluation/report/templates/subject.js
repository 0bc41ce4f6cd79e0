// Subject page: viewer, and tables whose rows move its crosshair. Without WebGL 2 the rows select pictures instead.
(() => {
  const byId = (id) => document.getElementById(id);
  const about = JSON.parse(byId("about").textContent);
  // Rows of both tables, clusters and lesions; each row has a position.
  const rows = [...document.querySelectorAll("tr[data-place]")];
  const figures = [...document.querySelectorAll(".point")];
  const state = document.documentElement.dataset;
  let goTo = null;
  let view = about.views[0];

  const choose = (row) => {
    for (const other of rows) other.removeAttribute("aria-current");
    row.setAttribute("aria-current", "true");
    for (const figure of figures) figure.classList.toggle("chosen", figure.dataset.place === row.dataset.place);
    if (goTo) goTo(view.places[Number(row.dataset.place)]);
  };
  // After a user action, scroll the viewer into view.
  const chooseAndShow = (row) => {
    choose(row);
    if (goTo) byId("viewer").scrollIntoView({ block: "nearest" });
  };
  for (const row of rows) {
    row.addEventListener("click", () => chooseAndShow(row));
    row.addEventListener("keydown", (event) => {
      const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
      if (event.key === "Enter" || event.key === " ") chooseAndShow(row);
      else if (step && row[step]) row[step].focus();
      else return;
      event.preventDefault();
    });
  }
  if (byId("points")) byId("points").classList.add("one");
  const first = rows.find((row) => row.dataset.peak && row.dataset.place === "0");
  if (first) choose(first);

  const unpacked = (id) => {
    const bytes = Uint8Array.from(atob(byId(id).textContent.trim()), (letter) => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
  };
  const hideViewer = (reason) => {
    byId("viewer").hidden = true;
    byId("viewer-note").hidden = false;
    byId("viewer-note").textContent = reason + " The pictures below show the same.";
    goTo = null;
    state.viewer = "absent";
  };

  const start = async () => {
    if (!document.createElement("canvas").getContext("webgl2")) {
      hideViewer("The viewer needs WebGL 2, which this browser does not support.");
      return;
    }
    byId("viewer-note").textContent = "Loading the viewer …";
    const script = document.createElement("script");
    script.textContent = await unpacked("niivue").text();
    document.head.append(script);
    byId("viewer").hidden = false;

    const canvas = byId("canvas");
    canvas.addEventListener("webglcontextlost", () => hideViewer("The connection to the graphics card was lost."));
    const { Niivue, NVImage } = window.niivue;
    const viewer = new Niivue({
      isRadiologicalConvention: true, dragAndDropEnabled: false, logLevel: "error", loadingText: "", backColor: [0, 0, 0, 1],
      crosshairColor: [0.55, 1, 0.7, 0.9], crosshairWidth: 0.7, crosshairWidthUnit: "mm", crosshairGap: 10, show3Dcrosshair: true, multiplanarShowRender: 0, fontColor: [0.9, 0.92, 0.95, 1],
      // NiiVue's letters lie where the crosshair crosses them; `label` draws others.
      isOrientationTextVisible: false, multiplanarPadPixels: 14,
    });
    await viewer.attachToCanvas(canvas, false);
    // Letters in the upper corners of the slices, as in the pictures.
    const edges = [["R", "L"], ["R", "L"], ["P", "A"]];
    const label = () => {
      const pixels = canvas.width / canvas.clientWidth;
      const slices = viewer.screenSlices.filter((slice) => slice.axCorSag < edges.length);
      byId("letters").replaceChildren(...slices.flatMap(({ leftTopWidthHeight: [left, top, width], axCorSag }) => edges[axCorSag].map((text, end) => {
        const letter = document.createElement("span");
        letter.textContent = text;
        letter.style.left = (left + end * width) / pixels + "px";
        letter.style.top = top / pixels + "px";
        return letter;
      })));
    };
    const drawScene = viewer.drawScene.bind(viewer);
    viewer.drawScene = () => { drawScene(); label(); };
    const levels = about.red.map((_, i) => Math.round(i * 255 / (about.red.length - 1)));
    viewer.addColormap("voxout", { R: about.red, G: about.green, B: about.blue, A: about.alpha, I: levels });
    const [red, green, blue] = about.lesionColour;
    // Black without outline, since voxels are blended with their neighbours, including transparent ones.
    viewer.addColormap("voxout-lesion", { R: [0, red], G: [0, green], B: [0, blue], A: [0, 255], I: [0, 255] });
    // Opaque also where it is black, so that a scan hides the first.
    viewer.addColormap("voxout-scan", { R: [0, 255], G: [0, 255], B: [0, 255], A: [255, 255], I: [0, 255] });
    const image = async (id, colormap, low, high) => NVImage.new(await unpacked(id).arrayBuffer(), id + ".nii", colormap, 1, null, low, high);
    // A stored value is at most one step above its score.
    const stored = (score) => score - about.floor + view.step / 2;
    // Volumes of a view: all its scans, the map, the outline of the lesion mask. They are unpacked when first shown.
    const load = async (wanted) => {
      if (wanted.images) return;
      const scans = await Promise.all(wanted.scans.map((_, i) => image(`${wanted.space}-scan-${i}`, i ? "voxout-scan" : "gray", i ? 0 : 1, 255)));
      const map = await image(wanted.space + "-map", "voxout", 0, 1);
      // Colours of scores do not depend on the threshold; scores below it are transparent. In NiiVue 0.69 this is type
      // 2 for volumes, despite its name: type 1 only fades scores below the threshold.
      map.colormapType = 2;
      const lesion = byId(wanted.space + "-lesion") ? await image(wanted.space + "-lesion", "voxout-lesion", 0, 1) : null;
      wanted.images = { scans, map, lesion };
    };

    const threshold = byId("threshold"), shown = byId("threshold-value");
    const smallest = (about.sliderTop - about.floor) / 500;
    threshold.min = about.floor + smallest;
    threshold.max = about.sliderTop;
    const draw = () => {
      // The browser rounds the value of a slider: equal digits mean the threshold itself.
      const chosen = Number(threshold.value);
      const value = chosen.toPrecision(3) === about.threshold.toPrecision(3) ? about.threshold : chosen;
      const { map } = view.images;
      map.cal_min = stored(value);
      map.cal_max = Math.max(about.high - about.floor, map.cal_min + smallest);
      viewer.updateGLVolume();
      shown.textContent = value.toPrecision(3) + (value === about.threshold ? "" : value < about.threshold ? " (below the threshold)" : " (above the threshold)");
      threshold.setAttribute("aria-valuetext", "score " + shown.textContent);
      for (const row of rows) row.classList.toggle("below", Number(row.dataset.peak || Infinity) < value);
    };
    const reset = () => { threshold.value = about.threshold; draw(); };
    threshold.addEventListener("input", draw);
    byId("to-healthy").addEventListener("click", reset);
    const opacities = () => {
      const { scans, map, lesion } = view.images, inSpace = byId("view").value === "4";
      // The first scan defines the grid and stays below the others. In 3-D, these would be a black box.
      const chosen = byId("scan") && !inSpace ? Number(byId("scan").value) : 0;
      scans.forEach((scan, i) => { scan.opacity = i === 0 || i === chosen ? 1 : 0; });
      map.opacity = Number(byId("opacity").value);
      if (lesion) lesion.opacity = byId("lesion").checked ? 1 : 0;
      viewer.updateGLVolume();
    };
    for (const id of ["opacity", "lesion", "scan"]) if (byId(id)) byId(id).addEventListener("input", opacities);
    const show = async (wanted) => {
      await load(wanted);
      const before = Number(threshold.value);
      view = wanted;
      const { scans, map, lesion } = view.images;
      viewer.volumes = [];
      for (const volume of [...scans, map, ...(lesion ? [lesion] : [])]) viewer.addVolume(volume);
      threshold.value = before;
      opacities();
      draw();
      const chosen = rows.find((row) => row.getAttribute("aria-current"));
      goTo(chosen ? view.places[Number(chosen.dataset.place)] : middle());
    };
    // The middle of the volume: the origin of a scanner's coordinates may lie outside of the head.
    const middle = () => [...viewer.frac2mm([0.5, 0.5, 0.5], 0, true)].slice(0, 3);
    if (byId("space")) byId("space").addEventListener("click", async (event) => {
      const button = event.currentTarget;
      button.disabled = true;
      await show(about.views[view === about.views[0] ? 1 : 0]);
      button.disabled = false;
      button.focus();
      button.textContent = view.space === "own" ? "Template view" : "Own scan";
      button.setAttribute("aria-pressed", String(view.space === "template"));
      state.space = view.space;
    });
    byId("view").addEventListener("change", (event) => { viewer.setSliceType(Number(event.target.value)); opacities(); });
    document.querySelector(".viewer-controls").addEventListener("submit", (event) => event.preventDefault());

    let here = [0, 0, 0];
    viewer.onLocationChange = (place) => {
      here = [...place.mm].slice(0, 3);
      const [x, y, z] = here;
      const value = place.values[view.scans.length], score = value ? value.value : 0;
      // The midline of a scan need not be at 0.
      const side = Math.abs(x) < 1 ? " (midline)" : x < 0 ? " (left)" : " (right)";
      const elsewhere = (view.space === "own") === (about.scoredIn === "native") ? "" : view.space === "own" ? " on the scan's own grid" : " on the template grid";
      byId("where").textContent = `x ${x.toFixed(0)}${view.space === "own" ? "" : side}, y ${y.toFixed(0)}, z ${z.toFixed(0)} ${view.space === "own" ? "mm of the scan" : "MNI mm"}: ` + (score > 0 ? "score " + (score + about.floor).toPrecision(3) + elsewhere : "score below " + about.floor.toPrecision(3) + " or no score");
    };
    goTo = (mm) => {
      viewer.scene.crosshairPos = viewer.mm2frac(mm, 0, true);
      viewer.createOnLocationChange();
      viewer.drawScene();
    };
    // Left on the screen is the patient's right. NiiVue's own keys are disabled: some open dialogs or hide the map.
    const steps = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0], PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
    canvas.addEventListener("keydown", (event) => {
      event.stopImmediatePropagation();
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      goTo(here.map((mm, axis) => mm + step[axis] * view.spacing[axis]));
    }, true);
    canvas.addEventListener("keyup", (event) => event.stopImmediatePropagation(), true);
    threshold.value = about.threshold;
    await show(view);
    state.space = view.space;
    byId("viewer-note").textContent = "Click into a plane to move the crosshair; drag with the right mouse button to change the contrast. Keyboard: arrow keys, Page Up and Page Down.";
    state.viewer = "ready";
  };
  start().catch(() => hideViewer("The viewer could not be started."));
})();
