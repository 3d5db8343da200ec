// A browser that notices what must never happen: errors, a broken Content-Security-Policy, a call to another
// origin, a dialog that an agent's text has opened.
import { createRequire } from 'node:module';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { PATIENCE, PICTURES, ROOT, frames, gateway, here, inbox, service, token } from './world.mjs';

const AXE = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
export const LANGUAGES = { en: 'en-US', ko: 'ko-KR' };
export const SIZES = { wide: { width: 1440, height: 900 }, phone: { width: 360, height: 740 } };

export const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--font-render-hinting=none'],
});

/** Console errors that a test brings about on purpose. */
const EXPECTED = [/Failed to load resource/, /net::ERR_/];

export async function open({ language = 'en', size = 'wide', user = 'user123', role, seconds, query = '', at = inbox, dark = false, signIn = true, allow = [], isServed = false } = {}) {
  const context = await newContext({ locale: LANGUAGES[language], viewport: SIZES[size], colorScheme: dark ? 'dark' : 'light', timezoneId: 'Asia/Seoul', reducedMotion: 'reduce' }, isServed);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE * 1000);
  watch(page, allow);
  await page.goto(`${at}${query}${signIn ? `#token=${token(user, { role, seconds })}` : ''}`);
  if (signIn) await untilRead(page);
  return page;
}

/** Waits until the page hears of changes and has read its list, or failed to: what comes then is news. */
async function untilRead(page) {
  await page.locator('.connection.live').waitFor();
  await page.waitForFunction(() => {
    const list = document.querySelector('.list');
    const count = list?.querySelector('.count')?.textContent ?? '';
    return !list?.checkVisibility() || list.querySelector('.problem') || /\d/.test(count);
  });
}

/** A context that ends with the test. What its pages announce is in `said`. `isServed`: the page is the binary's, always. */
export async function newContext(options, isServed = false) {
  const context = await browser.newContext(options);
  here.getStore().contexts.push(context);
  await context.addInitScript(() => {
    globalThis.said = [];
    const find = new MutationObserver(() => {
      const region = document.querySelector('[aria-live=polite]');
      if (!region) return;
      find.disconnect();
      new MutationObserver(() => { if (region.textContent) globalThis.said.push(region.textContent); }).observe(region, { childList: true, characterData: true, subtree: true });
    });
    find.observe(document, { childList: true, subtree: true });
  });
  if (process.env.PAGE_FROM_FOLDER && !isServed) await context.route(/\/inbox\/[0-9a-f]{16}\//, (route) => route.fulfill({ path: join(ROOT, 'src/web', /\/inbox\/[0-9a-f]{16}\/([^?]+)/.exec(route.request().url())[1]) }));
  return context;
}

/** What goes wrong on this page is noted as the test's fault. */
export function watch(page, allow = []) {
  const { faults } = here.getStore();
  page.calls = [];
  const ours = [gateway, service, frames.allowed, frames.refused, 'data:', 'about:', 'blob:', ...allow];
  page.on('request', (request) => {
    page.calls.push(request);
    if (!ours.some((origin) => request.url().startsWith(origin))) faults.push(`a call to another origin: ${request.url()}`);
  });
  page.on('pageerror', (error) => faults.push(`an error on the page: ${error.stack ?? error.message}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && ![...EXPECTED, ...allow].some((expected) => expected instanceof RegExp && expected.test(message.text()))) {
      faults.push(`on the console: ${message.text()}`);
    }
  });
  page.on('dialog', (dialog) => { faults.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
}

/** axe's own list of what is wrong with the page as it is now. */
export async function axe(page) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) => `${target} ${failureSummary.replaceAll('\n', ' ')}`).join('; ')}`);
}

export async function picture(page, name) {
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}

/** Whether anything is wider than the window. */
export async function overflows(page) {
  return page.evaluate(() => {
    const found = [];
    if (document.documentElement.scrollWidth > innerWidth) found.push(`the page is ${document.documentElement.scrollWidth} wide`);
    for (const element of document.querySelectorAll('button, h1, h2, h3, p, label, nav a, .field, .actions > *, dialog[open] *')) {
      const { left, right, width } = element.getBoundingClientRect();
      if (width > 0 && (left < -1 || right > innerWidth + 1) && !element.closest('.unseen, nav')) found.push(`${element.tagName}.${element.className} ${element.textContent.slice(0, 40)}: ${Math.round(left)}–${Math.round(right)}`);
    }
    return found;
  });
}
