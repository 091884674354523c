// The live meter, the copy buttons, and the end of a revealed token. All else works without this script.
'use strict';

const find = (id) => document.getElementById(id);

// Removes the token from all places of the page.
function hideToken() {
  for (const secret of document.querySelectorAll('.secret')) {
    secret.textContent = secret.dataset.mask;
    secret.classList.remove('secret');
  }
  const note = find('countdown');
  if (!note) return;
  delete note.dataset.left;
  note.textContent = 'Hidden. Reveal the token again to see it.';
}

function countDown() {
  const note = find('countdown');
  if (!note) return;
  const end = Date.now() + note.dataset.seconds * 1000;
  const tick = () => {
    const left = Math.ceil((end - Date.now()) / 1000);
    // Not as text: screen readers would announce each second.
    note.dataset.left = left;
    if (left > 0) return;
    clearInterval(timer);
    hideToken();
  };
  const timer = setInterval(tick, 250);
  tick();
  // The browser may keep the page to go back to it, and its timers stop meanwhile.
  addEventListener('pagehide', hideToken);
}

function offerCopies() {
  for (const button of document.querySelectorAll('[data-copy]')) {
    button.hidden = false;
    button.addEventListener('click', async () => {
      const label = button.firstChild;
      try {
        await navigator.clipboard.writeText(find(button.dataset.copy).textContent);
        label.textContent = 'Copied';
      } catch {
        label.textContent = 'Select and copy it yourself';
      }
      setTimeout(() => { label.textContent = 'Copy'; }, 2000);
    });
  }
}

function follow() {
  const live = find('live');
  if (!live) return;
  const say = (text, isLive) => {
    live.textContent = text;
    live.classList.toggle('live', isLive);
  };
  const events = new EventSource(live.dataset.events);
  events.onmessage = (event) => {
    const usage = JSON.parse(event.data);
    if (usage.unknown) {
      say('The limiter does not answer. Trying again.', false);
      return;
    }
    const meter = find('meter');
    meter.max = usage.burst;
    meter.low = usage.burst / 4;
    meter.optimum = usage.burst;
    meter.value = usage.remaining;
    find('remaining').textContent = usage.remaining;
    find('burst').textContent = usage.burst;
    say(usage.full_in_s > 0 ? `Live. Full again in ${usage.full_in_s} s.` : 'Live. The bucket is full.', true);
  };
  events.addEventListener('end', () => {
    events.close();
    say('You are signed out. Reload the page to sign in.', false);
  });
  events.onerror = () => say('Not connected. Reload the page for the current state.', false);
}

countDown();
offerCopies();
follow();
