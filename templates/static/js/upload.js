// Uploads a dataset from the browser: hash, declare, PUT each file straight to the storage, commit.
// Files are hashed whole in memory, so what is large goes by the command line.
(function () {
  const MOST_BYTES = 512 * 2 ** 20;

  async function hash(file) {
    const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
    return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // A chosen folder's own name is not part of its files' paths.
  function pathOf(file) {
    return file.webkitRelativePath ? file.webkitRelativePath.split("/").slice(1).join("/") : file.name;
  }

  async function post(url, token, body) {
    const answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": token },
      body: JSON.stringify(body),
    });
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.message);
    return said;
  }

  async function put(file, where) {
    const headers = { ...where.headers };
    delete headers["content-length"]; // the browser's own to set
    const answer = await fetch(where.url, { method: "PUT", headers, body: file });
    if (!answer.ok) throw new Error(`${pathOf(file)} was not taken (${answer.status}); try again`);
  }

  async function upload(form, tell, progress) {
    const files = [...form.querySelectorAll("input[type=file]")].flatMap((input) => [...input.files]);
    const total = files.reduce((sum, file) => sum + file.size, 0);
    if (!files.length) throw new Error("Choose files or a folder first.");
    if (total > MOST_BYTES) throw new Error("More than 512 MiB: upload it by `gridloom upload`.");
    const token = form.querySelector("[name=csrfmiddlewaretoken]").value;
    const api = form.dataset.api;
    const declared = [];
    for (const file of files) {
      tell(`Hashing ${pathOf(file)}`);
      declared.push({ path: pathOf(file), bytes: file.size, sha256: await hash(file) });
    }
    const started = await post(api, token, { name: form.elements["name"].value, files: declared });
    let sent = 0;
    for (const file of files) {
      const where = started.puts[pathOf(file)];
      if (where) {
        tell(`Sending ${pathOf(file)}`);
        await put(file, where);
      }
      sent += file.size;
      progress(total ? sent / total : 1);
    }
    tell("Checking");
    return checked(await post(`${api}${started.id}/commit/`, token, {}), api);
  }

  // Large versions are looked through by a worker: ask until it has.
  async function checked(version, api) {
    while (version.state === "checking") {
      await new Promise((resolve) => setTimeout(resolve, 1000));
      const answer = await fetch(`${api}${version.id}/report/`);
      if (answer.ok) version = await answer.json();
    }
    if (version.state === "refused") throw new Error(version.detail);
    return version;
  }

  document.addEventListener("DOMContentLoaded", () => {
    const form = document.getElementById("upload-form");
    const status = document.getElementById("upload-status");
    const bar = document.getElementById("upload-progress");
    // Either files or a folder will do.
    const inputs = [...form.querySelectorAll("input[type=file]")];
    inputs.forEach((input) => input.addEventListener("change", () => {
      inputs.forEach((each) => { each.required = !inputs.some((other) => other.files.length) && each === inputs[0]; });
    }));
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const button = form.querySelector("button");
      button.disabled = true;
      bar.hidden = false;
      try {
        const made = await upload(form, (text) => { status.textContent = text; }, (share) => { bar.value = share; });
        status.textContent = `${made.name} v${made.version} is ready.`;
        location.assign(`${form.dataset.page}${made.id}/`);
      } catch (error) {
        status.textContent = error.message;
      } finally {
        button.disabled = false;
      }
    });
  });
})();
