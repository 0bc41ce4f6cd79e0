// Search and filters of the cohort table; the maps below are filtered alike.
(() => {
  const body = document.getElementById("subjects").tBodies[0];
  const controls = document.getElementById("filters");
  const find = document.getElementById("find"), matches = document.getElementById("matches");
  const choices = [...controls.querySelectorAll("select")];
  controls.hidden = false;
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let shown = 0;
    for (const row of body.rows) {
      const fits = choices.every((choice) => !choice.value || row.dataset[choice.id] === choice.value);
      row.hidden = !(fits && row.textContent.toLowerCase().includes(wanted));
      shown += !row.hidden;
      const map = document.getElementById("map-" + row.dataset.key);
      if (map) map.hidden = row.hidden;
    }
    matches.textContent = shown + " of " + body.rows.length;
  };
  find.addEventListener("input", filter);
  for (const choice of choices) choice.addEventListener("change", filter);
  controls.addEventListener("submit", (event) => event.preventDefault());
  filter();
})();
