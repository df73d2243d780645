"use strict";
// One player at a time; a line runs over the spectrogram, and a click there plays from that place.
for (const clip of document.querySelectorAll(".clip")) {
  const player = clip.querySelector("audio"), view = clip.querySelector(".view"), head = clip.querySelector(".head");
  const draw = () => {
    head.style.left = 100 * player.currentTime / (player.duration || 1) + "%";
    if (!player.paused) requestAnimationFrame(draw);
  };
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== player) other.pause();
    clip.classList.add("heard");
    draw();
  });
  player.addEventListener("seeked", draw);
  view.addEventListener("click", (event) => {
    const place = view.getBoundingClientRect();
    player.currentTime = (event.clientX - place.left) / place.width * (player.duration || 0);
    player.play().catch(() => {}); // another one was started before this one could
  });
}
