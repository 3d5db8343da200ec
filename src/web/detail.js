/**
 * One request: everything that it says, and what can be done about it. Approve stays locked until all of the
 * content has been on screen, and always names the content that was shown.
 */
import { api, isTemporary } from './api.js';
import { longText } from './content.js';
import { decide, jobOf, jobView, onJobChange, tickJob } from './decisions.js';
import { fill, h } from './dom.js';
import { draft, forget, keep } from './drafts.js';
import { Editor, differences } from './editor.js';
import { indented } from './json.js';
import { countdown, decider, hasRisk } from './list.js';
import { key, reasonForm } from './reason.js';
import { rememberForm } from './remember.js';
import { contentOf, parsed, readRequest, section } from './request.js';
import { NO_LOCK, Seen } from './seen.js';
import { current } from './session.js';
import { named, sentence, t, time } from './text.js';
import { NAME, hiddenIn, theirs, visible, visibleText, warning } from './visible.js';

/**
 * @typedef {import('./api.js').Answer} Answer
 * @typedef {import('./list.js').Item} Item
 * @typedef {import('./request.js').Request} Request
 * @typedef {import('./request.js').Shown} Shown
 *
 * @typedef {object} Options
 * @property {() => void} close
 * @property {(text: string) => void} announce
 * @property {(item: Item) => void} updated
 * @property {(id: string) => void} decided The person has decided this request.
 * @property {() => void} remembered The person's approval is remembered.
 * @property {() => void} showRemembered
 * @property {() => void} signIn
 */

const MAX_COMMENT = 2000;
const RETRY = 3000;

export class Detail {
  /** @param {Options} options */
  constructor(options) {
    this.options = options;
    this.id = '';
    /** @type {Shown | null} */
    this.shown = null;
    /** @type {Seen | null} */
    this.seen = null;
    /** Why it could not be decided, or read.
     * @type {Answer | null} */
    this.refusal = null;
    /** @type {'reject' | 'edit' | 'respond' | 'remember' | null} */
    this.mode = null;
    /** @type {Request | null} */
    this.request = null;
    /** What is being written, as long as the content is the same.
     * @type {{ key: string, element: HTMLElement, editor?: Editor, review?: { seen: Seen | null } } | null} */
    this.form = null;
    this.hasChanged = false;
    this.wasComplete = false;
    this.generation = 0;
    this.retryTimer = 0;
    /** @type {AbortController} */
    this.reading = new AbortController();

    this.head = h('header', { class: 'detailhead' });
    this.content = h('div', { class: 'content' });
    this.beside = h('div', { class: 'beside' });
    this.talk = h('div', { class: 'beside' });
    this.screen = h('div', { class: 'screen', tabindex: '0', role: 'region', 'aria-label': t('content') }, this.head, this.content, this.beside, this.talk);
    this.actions = h('div', { class: 'actions', role: 'region', 'aria-label': t('decision') });
    this.element = h('section', { class: 'detail', 'aria-label': t('request') }, this.screen, this.actions);
    onJobChange((id) => { if (id === this.id) this.renderActions(); });
    addEventListener('beforeprint', () => this.openAll());
    setInterval(() => this.tick(), 1000);
  }

  get isDialogOpen() {
    return document.querySelector('dialog[open]') !== null;
  }

  /**
   * @param {string} id
   * @param {Promise<void>} heard Reading waits for this, so that no change is missed: see `start`.
   */
  async open(id, heard) {
    if (id === this.id) return;
    this.close();
    this.id = id;
    const { generation } = this;
    this.element.classList.add('open');
    fill(this.head, h('p', { class: 'loading' }, t('loading')));
    await heard;
    if (generation === this.generation) await this.read();
  }

  close() {
    this.generation += 1;
    this.reading.abort();
    clearTimeout(this.retryTimer);
    this.seen?.stop();
    this.seen = null;
    this.id = '';
    this.shown = null;
    this.refusal = null;
    this.mode = null;
    this.dropForm();
    this.hasChanged = false;
    this.wasComplete = false;
    this.element.classList.remove('open');
    for (const part of [this.head, this.content, this.beside, this.talk, this.actions]) fill(part);
    this.screen.scrollTop = 0;
  }

  /** Reads the request, also again when it may have changed. */
  async read() {
    const generation = ++this.generation;
    const { id } = this;
    this.reading.abort();
    this.reading = new AbortController();
    clearTimeout(this.retryTimer);
    const read = await readRequest(id, this.reading.signal);
    if (generation !== this.generation) return;
    if ('failed' in read) this.failed(read.failed);
    else this.show(read);
  }

  /** @param {Answer} answer */
  failed(answer) {
    if (isTemporary(answer) || answer.status === 401) {
      this.retryTimer = setTimeout(() => this.read(), Math.max(RETRY, answer.retryAfter * 1000));
    }
    if (this.shown) return;
    fill(this.head,
      this.backButton(),
      h('p', { class: 'problem', role: 'alert' }, answer.message || t(answer.status ? 'unexpected' : 'unreachable')),
      (isTemporary(answer) || answer.status === 401) && h('p', null, t('triesAgain')));
    fill(this.actions);
  }

  /** @param {Request} request */
  show(request) {
    const before = this.shown;
    this.request = request;
    this.shown = request.shown;
    const isSame = before !== null && before.etag === this.shown.etag;
    if (!isSame) {
      this.hasChanged = before !== null;
      if (this.hasChanged) {
        this.mode = null;
        this.options.announce(t('contentChanged'));
      }
      this.refusal = null;
      this.wasComplete = false;
      this.seen?.stop();
      this.seen = new Seen(this.screen, () => this.seenMore());
      this.renderContent(request, this.seen);
    } else if (before.status !== this.shown.status || before.mayDecide !== this.shown.mayDecide) this.refusal = null;
    this.screen.setAttribute('aria-label', `${t('request')}: ${visibleText(this.shown.actionType)}`);
    this.renderBeside();
    this.renderTalk();
    this.renderActions();
    this.options.updated(this.shown);
  }

  backButton() {
    return h('button', { type: 'button', class: 'back quiet', onclick: () => this.options.close() }, `‹ ${t('back')}`);
  }

  // ── What it says ──

  /**
   * @param {Request} request
   * @param {Seen} seen
   */
  renderContent(request, seen) {
    const { shown } = request;
    this.deadline = h('span', { class: 'countdown' });
    this.changedNote = this.hasChanged && h('p', { class: 'changed', role: 'alert' }, t('contentChanged'));
    const title = h('h2', { tabindex: '-1' }, theirs(shown.actionType, '', NAME), warning(hiddenIn(shown.actionType, NAME)));
    seen.add(title);
    fill(this.head,
      this.backButton(),
      this.changedNote,
      h('div', { class: 'title' }, title, hasRisk(shown) && h('span', { class: `risk ${shown.risk}` }, named('risk', shown.risk)), this.deadline));
    fill(this.content, ...contentOf(request, seen));
  }

  renderBeside() {
    const { shown, decidedAs } = /** @type {Request} */ (this.request);
    const facts = /** @type {[string, any][]} */ ([
      [t('why'), shown.why],
      shown.rule && [t('rule'), theirs(shown.rule)],
      [t('asked'), time(shown.createdAt)],
      [t('expires'), time(shown.expiresAt)],
      shown.agentWaitsUntil && [t('agentWaits'), time(shown.agentWaitsUntil)],
      shown.approvalsNeeded > 1 && [t('approvals'), t('approvalsOf', { n: shown.approvals, needed: shown.approvalsNeeded })],
      [t('requestId'), theirs(shown.requestId, 'id')],
      [t('session'), theirs(shown.sessionId, 'id')],
      shown.taskId && [t('task'), theirs(shown.taskId, 'id')],
      [t('origin'), named('origin', shown.origin)],
      shown.grantId && [t('grant'), theirs(shown.grantId, 'id')],
    ].filter(Boolean));
    fill(this.beside,
      section(t('aboutIt'), h('dl', { class: 'facts' }, facts.map(([name, value]) => h('div', null, h('dt', null, name), h('dd', null, value))))),
      decidedAs.arguments !== undefined && section(t('approvedWith'), longText(decidedAs.arguments, NO_LOCK, 'raw')),
      decidedAs.response !== undefined && section(t('answeredWith'), longText(decidedAs.response, NO_LOCK, 'raw')),
      shown.comments.length > 0 && section(t('comments'), h('ol', { class: 'comments' }, shown.comments.map(({ userId, author, text, at }) => h('li', null,
        h('p', { class: 'by' }, theirs(userId), author === 'agent' ? ` (${t('agent')})` : '', ' · ', time(at)), longText(text, NO_LOCK))))),
      shown.votes.length > 0 && section(t('votes'), h('ul', { class: 'votes' }, shown.votes.map((vote) => h('li', { class: vote.counted ? '' : 'uncounted' },
        named('vote', vote.decision), ' · ', theirs(vote.userId), ' · ', time(vote.at),
        vote.reason ? [' · ', theirs(vote.reason)] : null, vote.counted ? null : [' · ', t('notCounted')])))),
      section(t('history'), h('ol', { class: 'history' }, shown.history.map(({ at, event, by }) => h('li', null,
        time(at), h('span', null, event === 'approved' && shown.decidedVia === 'grant'
          ? [t('event_byGrant'), ' · ', decider(shown), ' · ', theirs(shown.grantId, 'id')]
          : [named('event', event), by ? [' · ', theirs(by)] : null]))))));
    this.tick();
  }

  tick() {
    if (!this.shown || !this.deadline) return;
    const isPending = this.shown.status === 'pending';
    const { isUrgent, text } = countdown(this.shown);
    const words = !isPending ? named('status', this.shown.status)
      : this.shown.agentWaitsUntil ? t('agentWaitsFor', { time: text }) : t('expiresIn', { time: text });
    if (this.deadline.textContent !== words) this.deadline.textContent = words;
    this.deadline.classList.toggle('urgent', isPending && isUrgent);
    tickJob(jobOf(this.id), this.actions);
  }

  /** Where to ask or answer something, as long as the request waits. */
  renderTalk() {
    const { id, shown } = this;
    if (shown?.status !== 'pending') {
      fill(this.talk);
      return;
    }
    if (this.talk.childElementCount) return;
    const draftKey = `${id} comment`;
    const text = h('textarea', { rows: '2', maxlength: MAX_COMMENT, 'aria-label': t('comment'), placeholder: t('commentHint') });
    text.value = draft(draftKey);
    const problem = h('p', { class: 'problem', role: 'alert' });
    const form = h('form', {
      class: 'form',
      onsubmit: async (/** @type {Event} */ event) => {
        event.preventDefault();
        const said = text.value.trim();
        if (!said) {
          text.focus();
          return;
        }
        const answer = await api.comment(id, said);
        if (answer.status === 401) this.options.signIn();
        if (!answer.ok) {
          fill(problem, answer.message || t(answer.status ? 'unexpected' : 'unreachable'));
          return;
        }
        fill(problem);
        keep(draftKey, '');
        text.value = '';
        this.options.announce(t('commented'));
        if (this.id === id) await this.read();
      },
    }, text, problem, h('div', { class: 'buttons' }, h('button', { type: 'submit' }, t('sendComment'))));
    text.addEventListener('input', () => keep(draftKey, text.value));
    fill(this.talk, section(t('comment'), form));
  }

  openAll() {
    if (!this.seen) return;
    for (let more = true; more;) {
      more = false;
      for (const open of [...this.seen.unseen.values()]) {
        if (!open) continue;
        open();
        more = true;
      }
    }
  }

  // ── What can be done ──

  seenMore() {
    const isComplete = this.seen?.isComplete ?? false;
    if (isComplete && !this.wasComplete && this.mayApprove) this.options.announce(t('unlocked'));
    if (isComplete && this.changedNote) {
      // That approving is locked is true no more; that is no alarm.
      this.changedNote.removeAttribute('role');
      fill(this.changedNote, t('contentHasChanged'));
    }
    if (isComplete !== this.wasComplete) {
      this.wasComplete = isComplete;
      this.renderActions();
    } else this.renderProgress();
  }

  get mayDecide() {
    return this.shown !== null && this.shown.status === 'pending' && this.shown.mayDecide && !this.refusal;
  }

  get mayApprove() {
    return this.mayDecide && this.shown?.decisions.includes('approve');
  }

  renderProgress() {
    const progress = this.actions.querySelector('.progress');
    if (!progress || !this.seen) return;
    const left = this.seen.unseen.size;
    fill(progress, t('seenOf', { n: this.seen.total - left, total: this.seen.total }));
  }

  renderActions() {
    const { shown } = this;
    const focused = document.activeElement instanceof HTMLElement && this.actions.contains(document.activeElement)
      ? document.activeElement.dataset.name : undefined;
    const parts = shown ? this.actionsOf(shown) : [];
    // Whoever writes is not disturbed.
    if (parts.length === 1 && parts[0] === this.actions.firstChild && this.actions.childElementCount === 1) return;
    fill(this.actions, ...parts);
    this.renderProgress();
    if (focused) {
      const same = this.actions.querySelector(`[data-name="${CSS.escape(focused)}"]:not([disabled])`);
      /** @type {HTMLElement} */ (same ?? this.screen).focus({ preventScroll: true });
    }
    this.tick();
  }

  /**
   * @param {Shown} shown
   * @returns {import('./dom.js').Child[]}
   */
  actionsOf(shown) {
    const job = jobOf(shown.requestId);
    if (job) {
      return [jobView(job)];
    }
    if (shown.status !== 'pending') return [this.outcome(shown)];
    const { refusal } = this;
    if (refusal) {
      const isOver = refusal.status === 401;
      return [h('div', { class: 'refusal', role: 'alert' },
        h('p', null, refusal.message || t('unexpected')),
        h('div', { class: 'buttons' }, isOver
          ? h('button', { type: 'button', class: 'primary', 'data-name': 'signin', onclick: () => this.options.signIn() }, t('signIn'))
          : h('button', { type: 'button', 'data-name': 'again', onclick: () => { this.refusal = null; this.read(); } }, t('lookAgain'))))];
    }
    if (!shown.mayDecide) return [h('p', { class: 'cannot' }, t('youCannotDecide'), ' ', shown.why)];
    if (this.mode) {
      const formKey = `${this.mode} ${shown.etag}`;
      if (this.form?.key !== formKey) {
        this.dropForm();
        this.form = { key: formKey, ...(this.mode === 'reject' ? { element: this.rejectForm() } : this.mode === 'remember' ? { element: this.rememberForm(shown) } : this.mode === 'edit' ? this.editForm(shown) : this.respondForm(shown)) };
      }
      return [this.form.element];
    }
    this.dropForm();
    const isComplete = this.seen?.isComplete ?? false;
    const hasVoted = shown.votes.some((vote) => vote.counted && vote.decision === 'approve' && vote.userId === current()?.user);
    return [
      hasVoted && h('p', { class: 'good voted' }, t('youVoted', { n: shown.approvalsNeeded - shown.approvals })),
      !hasVoted && h('div', { class: 'lock' },
        h('p', { class: 'progress', id: 'progress' }),
        !isComplete && h('button', { type: 'button', class: 'quiet', 'data-name': 'next', onclick: () => this.next() }, t('nextUnseen'), key('n')),
        isComplete && shown.remember && !shown.askedAgain && shown.decisions.includes('approve') && h('button', { type: 'button', class: 'quiet', 'data-name': 'remember', onclick: () => this.startRemember() }, t('remember'))),
      shown.askedAgain && h('p', null, t('askedAgainHow')),
      h('div', { class: 'buttons' },
        shown.decisions.includes('reject') && h('button', { type: 'button', class: 'reject', 'data-name': 'reject', onclick: () => this.startReject() }, t('reject'), key('r')),
        shown.decisions.includes('respond') && h('button', { type: 'button', 'data-name': 'respond', onclick: () => this.startMode('respond') }, t('respond')),
        shown.decisions.includes('edit') && isComplete && h('button', { type: 'button', 'data-name': 'edit', onclick: () => this.startMode('edit') }, t('edit')),
        shown.decisions.includes('approve') && !hasVoted && h('button', {
          type: 'button', class: 'approve', 'data-name': 'approve', disabled: !isComplete, 'aria-describedby': 'progress',
          onclick: (/** @type {MouseEvent} */ event) => { if (event.detail < 2) this.approve(); },
        }, t(isComplete ? 'approve' : 'approveLocked'), key('a'))),
    ];
  }

  /** @param {Shown} shown */
  outcome(shown) {
    const isHeard = shown.history.some(({ event }) => event === 'heard' || event === 'acted');
    const isUnheard = shown.signal.state === 'sent' && shown.signal.listeners === 0 && !isHeard;
    return h('div', { class: 'outcome' },
      h('p', null,
        h('strong', { class: `status ${shown.status}` }, named('status', shown.status)),
        shown.decidedBy && [' · ', decider(shown)],
        ' · ', time(shown.decidedAt ?? shown.settledAt)),
      shown.reason && h('p', { class: 'reason' }, theirs(shown.reason)),
      shown.grantId && h('p', null, sentence(shown.decidedVia === 'grant' ? 'byGrantHow' : 'madeGrant', { grant: theirs(shown.grantId, 'id') }),
        (current()?.isAdmin || shown.decidedBy === current()?.user) && [' ', h('button', { type: 'button', class: 'quiet small', 'data-name': 'remembered', onclick: () => this.options.showRemembered() }, t('remembered'))]),
      shown.signal.state === 'owed' && h('p', null, t('signalOwed')),
      isUnheard && h('p', null, t('signalUnheard')),
      shown.signal.state === 'superseded' && h('p', null, t('signalSuperseded')));
  }

  dropForm() {
    this.form?.review?.seen?.stop();
    this.form = null;
  }

  /** The first part that has not been on screen: of the difference, while one is shown. */
  next() {
    (this.form?.review?.seen ?? this.seen)?.next();
  }

  /** @param {'edit' | 'respond'} mode */
  startMode(mode) {
    if (!this.mayDecide || !this.shown?.decisions.includes(mode) || jobOf(this.id)) return;
    this.mode = mode;
    this.renderActions();
    this.form?.editor?.focus();
  }

  leaveMode() {
    this.mode = null;
    this.renderActions();
    this.screen.focus({ preventScroll: true });
  }

  /**
   * @param {string} question
   * @param {Editor} editor
   * @param {import('./dom.js').Child} middle
   * @param {HTMLButtonElement} confirm
   * @param {() => void} send
   * @param {HTMLButtonElement} [again] Back to writing.
   */
  modeForm(question, editor, middle, confirm, send, again) {
    // A double click shows the difference, and does not send what nobody has read.
    confirm.addEventListener('click', (event) => { if (event.detail > 1) event.preventDefault(); });
    const element = h('form', {
      class: 'form wide',
      onsubmit: (/** @type {Event} */ event) => { event.preventDefault(); send(); },
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        if (event.key !== 'Escape') return;
        event.preventDefault();
        event.stopPropagation();
        if (again && !again.hidden) again.click();
        else this.leaveMode();
      },
    }, h('p', { class: 'question' }, question), editor.element, middle,
    h('div', { class: 'buttons' }, h('button', { type: 'button', 'data-name': 'cancel', onclick: () => this.leaveMode() }, t('cancel'), key('Esc')), again, confirm));
    return { element, editor };
  }

  /**
   * Approves with other arguments: first shows the difference, then sends, once all of it has been on screen.
   * @param {Shown} shown
   */
  editForm(shown) {
    const written = this.request?.written ?? '{}';
    const difference = h('div', { class: 'difference', role: 'group', tabindex: '0', hidden: true, 'aria-label': t('difference') });
    const problem = h('p', { class: 'problem', role: 'alert' });
    const progress = h('p', { class: 'progress', id: 'differenceprogress' });
    const further = h('button', { type: 'button', class: 'quiet', 'data-name': 'next', onclick: () => this.next() }, t('nextUnseen'), key('n'));
    const lock = h('div', { class: 'lock', hidden: true }, progress, further);
    let reviewed = '';
    /** @type {{ seen: Seen | null }} */
    const review = { seen: null };
    const confirm = h('button', { type: 'submit', class: 'primary', 'data-name': 'confirm' }, t('showDifference'));
    const editor = new Editor({
      schema: this.request?.schemas.argumentsSchema, initial: written, draftKey: `${shown.requestId} edit`, name: 'arguments', label: t('arguments'), isPlain: false,
      changed: () => write(),
    });
    const write = () => {
      reviewed = '';
      review.seen?.stop();
      review.seen = null;
      confirm.className = 'primary';
      confirm.disabled = false;
      confirm.removeAttribute('aria-describedby');
      fill(confirm, t('showDifference'));
      fill(problem);
      difference.hidden = again.hidden = lock.hidden = true;
      editor.element.hidden = false;
    };
    const showProgress = () => {
      const { seen } = review;
      if (!seen) return;
      const isUnlocked = confirm.disabled && seen.isComplete;
      fill(progress, t('seenOf', { n: seen.total - seen.unseen.size, total: seen.total }));
      further.hidden = seen.isComplete;
      confirm.disabled = !seen.isComplete;
      fill(confirm, t(seen.isComplete ? 'approveEdited' : 'approveEditedLocked'));
      if (isUnlocked) this.options.announce(t('unlocked'));
    };
    const again = h('button', { type: 'button', hidden: true, 'data-name': 'again', onclick: () => { write(); editor.focus(); } }, t('editAgain'));
    editor.onRefused = write;
    const form = this.modeForm(t('editHow'), editor, [problem, difference, lock], confirm, () => {
      fill(problem);
      const edited = editor.read();
      if (edited === null) return;
      const json = parsed(edited);
      if (json?.kind !== 'object') {
        fill(problem, t('notAnObject'));
        return;
      }
      const after = indented(edited, json);
      if (after === written) {
        fill(problem, t('nothingChanged'));
        return;
      }
      if (reviewed !== edited) {
        reviewed = edited;
        const seen = new Seen(difference, showProgress, this.actions);
        review.seen = seen;
        let before = '';
        fill(difference, differences(written, after).flatMap(({ sign, line, place }) => {
          const part = h(sign === '-' ? 'del' : 'ins', null, visible(line));
          seen.add(part);
          const where = place !== before && h('p', { class: 'where' }, place ? visible(place) : t('topLevel'));
          before = place;
          return [where, part];
        }));
        // All that is seen is what will change.
        difference.hidden = again.hidden = lock.hidden = false;
        difference.scrollTop = 0;
        editor.element.hidden = true;
        confirm.className = 'approve';
        confirm.disabled = true;
        confirm.setAttribute('aria-describedby', progress.id);
        showProgress();
        difference.focus();
        return;
      }
      if (!review.seen?.isComplete) {
        this.options.announce(t('stillLocked', { n: review.seen?.unseen.size ?? 0 }));
        return;
      }
      this.send('approve', {}, { arguments: edited });
    }, again);
    return { ...form, review };
  }

  /** @param {Shown} shown */
  respondForm(shown) {
    const schema = this.request?.schemas.responseSchema;
    const editor = new Editor({
      schema, initial: undefined, draftKey: `${shown.requestId} respond`, name: 'response', label: t('response'), isPlain: schema === undefined, changed: () => {},
    });
    const details = schema !== undefined && h('details', null, h('summary', null, t('schema')), longText(schema, NO_LOCK, 'raw'));
    const confirm = h('button', { type: 'submit', class: 'primary', 'data-name': 'confirm' }, t('respond'));
    return this.modeForm(t(schema === undefined ? 'respondHow' : 'respondJson'), editor, details, confirm, () => {
      const response = editor.read();
      if (response !== null) this.send('respond', {}, { response });
    });
  }

  startReject() {
    if (!this.mayDecide || !this.shown?.decisions.includes('reject') || jobOf(this.id)) return;
    this.mode = 'reject';
    this.renderActions();
    /** @type {HTMLElement | null} */ (this.actions.querySelector('.pick'))?.focus();
  }

  rejectForm() {
    return reasonForm({
      draftKey: `${this.id} reject`, question: t('rejectWhy'), confirm: t('reject'),
      send: (reason) => this.send('reject', { reason }), cancel: () => this.leaveMode(),
    });
  }

  startRemember() {
    if (!this.mayApprove || !this.seen?.isComplete || jobOf(this.id)) return;
    this.mode = 'remember';
    this.renderActions();
    this.actions.querySelector('select')?.focus();
  }

  /** @param {Shown} shown */
  rememberForm(shown) {
    return rememberForm({ shown, send: (remember) => this.send('approve', { remember }), cancel: () => this.leaveMode() });
  }

  approve() {
    // Whoever writes something else does not mean the plain approval.
    if (!this.mayApprove || this.mode || jobOf(this.id)) return;
    if (!this.seen?.isComplete) {
      this.options.announce(t('stillLocked', { n: this.seen?.unseen.size ?? 0 }));
      this.actions.querySelector('.lock')?.animate([{ opacity: 1 }, { opacity: 0.3 }, { opacity: 1 }], 300);
      return;
    }
    this.send('approve', {});
  }

  /**
   * @param {string} verb
   * @param {Record<string, unknown>} body
   * @param {Record<string, string>} [json] Further fields, as JSON.
   */
  async send(verb, body, json) {
    const { id, shown } = this;
    if (!shown) return;
    const action = visibleText(shown.actionType);
    const answer = await decide(verb, id, body, shown.etag, json);
    if (!answer) return;
    if (answer.ok) {
      forget(id);
      if (body.remember) this.options.remembered();
      this.options.announce(answer.status === 202 ? answer.message : t(body.remember ? 'doneRemember' : verb === 'approve' ? 'doneApprove' : verb === 'reject' ? 'doneReject' : 'doneRespond', { action }));
      if (this.id === id) this.mode = null;
      this.options.decided(id);
      if (this.id === id) await this.read();
      return;
    }
    this.options.announce(`${action}: ${answer.message || t('unexpected')}`);
    if (answer.status === 401) this.options.signIn();
    if (this.id !== id) return;
    if (answer.status === 412) {
      // Read again: what has changed is shown, and locked.
      await this.read();
      return;
    }
    if (answer.status === 400 && this.mode && this.form?.editor) {
      // What was written does not fit: it stays, with the reasons.
      this.renderActions();
      this.form?.editor?.refuse(answer.message, answer.data, verb === 'approve' ? 'arguments' : 'response');
      return;
    }
    this.refusal = answer;
    if (answer.code === 'E3006' && answer.data && this.shown) {
      const { status, decidedBy, decidedAt, reason } = answer.data;
      Object.assign(this.shown, { status, decidedBy, decidedAt, reason: reason ?? null, mayDecide: false });
      this.refusal = null;
    }
    this.renderActions();
    if (answer.status !== 401) await this.refreshKeepingRefusal(answer);
  }

  /**
   * Reads what is known by now. What the service said of the decision stays.
   * @param {Answer} refusal
   */
  async refreshKeepingRefusal(refusal) {
    const { id } = this;
    await this.read();
    if (this.id === id && this.shown?.status === 'pending') {
      this.refusal = refusal;
      this.renderActions();
    }
  }

  /** Signed in again: what was refused for lack of it may be tried again. */
  signedIn() {
    if (!this.id) return;
    if (this.refusal?.status === 401) this.refusal = null;
    this.read();
  }
}
