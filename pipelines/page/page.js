// Turns each row of pictures into a comparison: the first picture on the left of the handle, any other on its right.
"use strict";
for (const pair of document.querySelectorAll(".pair")) {
  const figures = [...pair.querySelectorAll("figure")];
  const images = figures.map((figure) => figure.querySelector("img"));
  if (images.length < 2) continue;
  const name = pair.closest("article").querySelector("h3").textContent.trim();
  const stage = document.createElement("div");
  stage.className = "compare";
  const right = images[0].cloneNode();
  const left = images[0].cloneNode();
  left.className = "left";
  left.alt = "";
  const labels = [document.createElement("span"), document.createElement("span")];
  labels[0].className = "on-left";
  labels[1].className = "on-right";
  labels[0].textContent = images[0].dataset.label;
  const handle = document.createElement("input");
  Object.assign(handle, { type: "range", min: 0, max: 100, value: 50, step: 0.5 });
  const move = () => stage.style.setProperty("--at", `${handle.value}%`);
  handle.addEventListener("input", move);
  stage.append(right, left, ...labels, handle);
  pair.prepend(stage);
  pair.classList.add("live");

  const choose = (index) => {
    right.src = images[index].src;
    right.alt = images[index].alt;
    labels[1].textContent = images[index].dataset.label;
    handle.setAttribute("aria-label", `${name}: ${images[0].dataset.label} on the left, ${images[index].dataset.label} on the right`);
    figures.forEach((figure, n) => figure.setAttribute("aria-pressed", String(n === index)));
  };
  figures.forEach((figure, index) => {
    figure.tabIndex = 0;
    figure.setAttribute("role", "button");
    figure.addEventListener("click", () => choose(index));
    figure.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(index);
    });
  });
  const best = images.findIndex((image) => image.dataset.label.toLowerCase() === "restored");
  choose(best > 0 ? best : images.length - 1);
  move();
}
