"""An upgrade under load, and the way back, for scripts/upgrade.

Two replicas stand behind a caller that does as the Gateway does: a call that a stopping replica did
not take goes to the other one. Agents ask over Redis and over HTTP, people approve and reject, and
whatever a call is told, an agent hears or the ledger holds is compared with what was decided. Phases
end by the number of decisions, never by the clock.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter, defaultdict
from pathlib import Path

import redis

import migrations

TENANT, OTHER_TENANT = "tenant1", "tenant2"
SECRET = "a secret that the Auth server shares with us"
# An answer or a signal that takes longer than this many seconds is lost.
PATIENCE = 20
# What registering is answered: 200 when a replica has taken it and was stopped before it said so.
NEW = (201, 200)

arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
arguments.add_argument("--old", required=True)
arguments.add_argument("--new", required=True)
arguments.add_argument("--psql", required=True)
arguments.add_argument("--old-sources", type=Path, required=True)
arguments.add_argument("--decisions", type=int, default=250, help="in each phase")
arguments = arguments.parse_args()
binaries = {"old": arguments.old, "new": arguments.new}

folder = Path(tempfile.mkdtemp(prefix="aura-hitl-upgrade."))
link = redis.Redis.from_url(os.environ["TEST_REDIS_URL"], decode_responses=True)
base, _, _ = os.environ["TEST_DATABASE_URL"].rpartition("/")
database = f"aura_hitl_upgrade_{os.getpid()}"
run_id = uuid.uuid4().hex[:8]

passed, failed = 0, 0
faults, faults_lock = [], threading.Lock()
tally, tally_lock = Counter(), threading.Lock()


def check(name, fault=None):
    """A line: ok, or FAIL with what is wrong."""
    global passed, failed
    passed, failed = passed + (not fault), failed + bool(fault)
    print(f"FAIL  {name}\n      {fault}" if fault else f"ok    {name}", flush=True)


def count(what):
    with tally_lock:
        tally[what] += 1


def wrong(text):
    with faults_lock:
        faults.append(text)


def until(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            return value
        time.sleep(0.02)
    return value


def sql(query, url=None):
    command = [arguments.psql, url or f"{base}/{database}", "-XAtqc", query]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def rows(query):
    return json.loads(sql(f"SELECT coalesce(json_agg(row_to_json(r)), '[]') FROM ({query}) r"))


# ── Replicas, and the Gateway before them ────────────────────────────────────────────────────────


def environment(port=0):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {
        "DATABASE_URL": f"{base}/{database}",
        "REDIS_URL": os.environ["TEST_REDIS_URL"],
        "JWT_SECRET": SECRET,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "RUST_LOG": "warn",
        "AURA_HITL_AUTO_MIGRATE": "false",
        # A few people make all the calls here.
        "AURA_HITL_RATE_LIMIT_PER_SECOND": "0",
    }


def command(version, *words):
    return subprocess.run(
        [binaries[version], *words], env=environment(), cwd=folder, capture_output=True, text=True
    )


class Replica:
    """A place at which one release after another runs."""

    def __init__(self, name):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.log = folder / f"{name}.log"
        self.process = None
        self.version = None  # which release runs here
        # From before it is told to stop until the next one is ready: it need not take calls.
        self.is_leaving = True
        self.longest_stop = 0.0

    def start(self, version):
        self.version = version
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [binaries[version], "serve"], env=environment(self.port), cwd=folder, stdout=log, stderr=log
            )
        if not until(self.is_ready, 60):
            raise SystemExit(f"the {version} release does not start:\n{self.log.read_text()[-2000:]}")
        self.is_leaving = False

    def is_ready(self):
        if self.process.poll() is not None:
            return False
        try:
            return self.call("GET", "/health/ready", {}, None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def stop(self):
        self.is_leaving = True
        asked = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30)
        self.longest_stop = max(self.longest_stop, time.monotonic() - asked)
        return code

    def replace(self, version):
        code = self.stop()
        check(f"a replica stops by itself, and the {version} release takes its place", code and f"exit {code}")
        self.start(version)

    def call(self, method, path, headers, body):
        """One call on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=70)
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


replicas = [Replica("first"), Replica("second")]


class Caller:
    """Somebody with a token, behind the Gateway."""

    def __init__(self, user, tenant=TENANT):
        done = command("new", "token", "--sub", user, "--tenant", tenant)
        if done.returncode:
            raise SystemExit(done.stderr)
        self.user = user
        self.headers = {
            "Authorization": f"Bearer {done.stdout.strip()}",
            "X-Tenant-ID": tenant,
            "X-User-ID": user,
            "Content-Type": "application/json",
        }

    def call(self, method, path, body=None, first=0, wanted=(200,)):
        """The answer's data, and which release gave it: "either" if one had taken the call, and may have done
        it, before it broke off. Only a replica that is being replaced may leave a call without an answer;
        then the other one is asked, with the same words."""
        deadline = time.monotonic() + PATIENCE
        broken_off_by = None
        for turn in itertools.count(first):
            replica = replicas[turn % 2]
            version, was_leaving = replica.version, replica.is_leaving
            try:
                text = None if body is None else json.dumps(body)
                status, answer = replica.call(method, f"/api{path}", self.headers, text)
            except (OSError, http.client.HTTPException) as error:
                if not (was_leaving or replica.is_leaving or replica.version != version):
                    wrong(f"{method} {path}: {error!r} of a replica that was not stopped")
                    return None, version
                is_refused = isinstance(error, ConnectionRefusedError)
                count("refused" if is_refused else "broken off")
                broken_off_by = broken_off_by if is_refused else version
                if time.monotonic() > deadline:
                    wrong(f"{method} {path}: nobody answers")
                    return None, version
                continue
            count("calls")
            if status not in wanted:
                wrong(f"{method} {path}: {status} of the {version} release, not {wanted}: {answer}")
                return None, version
            return answer.get("data"), version if broken_off_by in (None, version) else "either"


# ── Agents: everything that is published, and everything that was asked ──────────────────────────


class Ears(threading.Thread):
    """Subscribed as agents are, to all sessions of this run, from before the first."""

    def __init__(self):
        super().__init__(daemon=True)
        self.heard = defaultdict(list)  # by session and request
        self.pubsub = link.pubsub()
        self.pubsub.psubscribe(f"hitl:channel:session_*_{run_id}*")
        assert self.pubsub.get_message(timeout=10)["type"] == "psubscribe"

    def run(self):
        for message in self.pubsub.listen():
            if message["type"] == "pmessage":
                session = message["channel"].removeprefix("hitl:channel:")
                named = re.search(r'"requestId":"(.+?)"', message["data"])
                self.heard[session, named and named[1]].append(message["data"])


class Asked:
    """A request, and what became of it as far as its people know."""

    def __init__(self, kind, session, user, number):
        self.kind, self.session, self.user = kind, session, user
        self.id = f"req_{uuid.uuid4().hex[:12]}"
        self.verb = "approve" if number % 3 else "reject"
        self.reason = "사용자 거절" if number % 2 else None
        self.task = None
        self.path = ()  # which release registered it, and which one decided it
        self.decided_at = 0.0

    @property
    def status(self):
        return {"approve": "approved", "reject": "rejected"}[self.verb]

    def data(self):
        data = {"requestId": self.id, "sessionId": self.session, "status": self.status}
        return data if self.verb == "approve" else data | {"reason": self.reason or "User rejected"}

    def body(self):
        return {"userId": self.user} | ({"reason": self.reason} if self.verb == "reject" and self.reason else {})

    def is_signal(self, text):
        """The contract's bytes, with any whole seconds."""
        data = self.data()
        signal = {"type": "approval" if self.verb == "approve" else "rejection", "requestId": self.id}
        signal |= {key: data[key] for key in ("status", "reason") if key in data}
        said = json.dumps(signal, ensure_ascii=False, separators=(",", ":"))[:-1]
        return re.fullmatch(re.escape(said) + r',"timestamp":\d{10}\}', text) is not None


ears = Ears()
decided, expiring, decided_lock = [], [], threading.Lock()
guesses = set()  # requests of `guess`
ending = threading.Event()


class Session(threading.Thread):
    """An agent that asks for one thing after another, and its person."""

    def __init__(self, number, kind):
        super().__init__()
        self.kind, self.number = kind, number
        self.caller = Caller(f"user{number}")
        self.session = f"session_{self.caller.user}_{run_id}{number}"
        self.turns = itertools.count()

    def run(self):
        for turn in self.turns:
            if ending.is_set():
                return
            try:
                self.ask(turn)
            except Exception as error:  # noqa: BLE001 - a thread that dies asks nothing, and nobody would know
                wrong(f"{self.session}: {error!r}")
                return

    def ask(self, turn):
        call = self.caller.call
        first = (turn + self.number) % 2
        asked = Asked(self.kind, self.session, self.caller.user, turn)
        registered_by = None
        if self.kind == "redis":
            self.write(asked)
        else:
            registered_by = self.register(asked, turn, first)
        waiter = None
        if self.kind == "http" and turn % 4 == 1:
            waiter = threading.Thread(target=self.wait, args=(asked, random.randrange(2)))
            waiter.start()
        data, decided_by = call("POST", f"/aura/hitl/{asked.verb}/{asked.id}", asked.body(), first + 1)
        if data is None:
            return
        if data != asked.data():
            wrong(f"{asked.id}: decided as {data}, not as {asked.data()}")
        asked.path, asked.decided_at = (registered_by, decided_by), time.monotonic()
        with decided_lock:
            decided.append(asked)
        self.hear(asked)
        if turn % 5 == 0:
            self.decide_again(asked, first)
        if asked.task:
            # 409 to a call that had been taken; what became of the task is looked at in the end.
            call("POST", f"/main/agent/tasks/{asked.task}/complete", {"done": asked.id}, first, wanted=(200, 409))
        if waiter:
            waiter.join()

    def write(self, asked):
        """As Aura does."""
        asked_for = {"requestId": asked.id, "sessionId": self.session, "actionType": "send_email",
                     "context": {"to": "a@b.c"}, "status": "pending", "userId": asked.user,
                     "tenantId": TENANT, "createdAt": 8123456789}
        pointer = {"sessionId": self.session, "requestId": asked.id, "userId": asked.user, "tenantId": TENANT}
        link.set(f"hitl:request:{asked.id}", json.dumps(asked_for), ex=1800)
        link.set(f"hitl:session:{self.session}", json.dumps(pointer), ex=3600)

    def register(self, asked, turn, first):
        call = self.caller.call
        body = {"requestId": asked.id, "sessionId": self.session, "actionType": "send_email", "context": {"n": turn}}
        if turn % 3 == 0:
            task = {"taskType": "mail", "userId": asked.user, "tenantId": TENANT}
            # Not what a Gateway sends twice: whether it is there is not known after a broken call.
            data, _ = call("POST", "/main/agent/tasks", task, first, wanted=(201,))
            asked.task = data["taskId"]
            call("POST", f"/main/agent/tasks/{asked.task}/start", None, first + 1)
            body["taskId"] = asked.task
        if turn % 10 == 9:
            dying = body | {"requestId": f"{asked.id}x", "sessionId": f"{self.session}x", "expiresInSeconds": 1}
            dying.pop("taskId", None)
            if call("POST", "/aura/hitl/requests", dying, first, wanted=NEW)[0]:
                expiring.append(dying["requestId"])
        data, version = call("POST", "/aura/hitl/requests", body, first, wanted=NEW)
        if data and data["status"] != "pending":
            wrong(f"{asked.id}: registered as {data}")
        return version

    def wait(self, asked, first):
        """Over HTTP, for as long as it takes; a replica that stops says to ask again."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            data, _ = self.caller.call("GET", f"/aura/hitl/requests/{asked.id}/decision?waitSeconds=10", None, first)
            if data and data["status"] != "pending":
                if data["status"] != asked.status:
                    wrong(f"{asked.id}: a waiting agent is told {data['status']}")
                return count("answers to waiting agents")
            first += 1
        wrong(f"{asked.id}: a waiting agent is told nothing")

    def hear(self, asked):
        if asked.kind == "http":
            return self.poll(asked)  # Only the older release says anything on a channel.
        if not until(lambda: (self.session, asked.id) in ears.heard):
            return wrong(f"{asked.id} of {self.session} ({asked.path}): no signal")
        kept = link.get(f"hitl:signal:{self.session}")
        if kept is None or not asked.is_signal(kept):
            wrong(f"{asked.id}: the key holds {kept}")
        self.poll(asked)

    def poll(self, asked):
        data, _ = self.caller.call("GET", f"/aura/hitl/signals/{self.session}?requestId={asked.id}", None, random.randrange(2))
        if data is None or not asked.is_signal(data):
            wrong(f"{asked.id}: polling finds {data}")

    def decide_again(self, asked, first):
        """The same again is the same; anything else is told what stands. Whichever release is asked."""
        data, _ = self.caller.call("POST", f"/aura/hitl/{asked.verb}/{asked.id}", asked.body(), first)
        if data != asked.data():
            wrong(f"{asked.id}: a double click is told {data}")
        other = "reject" if asked.verb == "approve" else "approve"
        data, _ = self.caller.call("POST", f"/aura/hitl/{other}/{asked.id}", {"userId": asked.user}, first + 1, wanted=(409,))
        if data and data["status"] != asked.status:
            wrong(f"{asked.id}: what stands is {data}")


def look_at_lists():
    caller, seen = Caller("user1"), 0
    for turn in itertools.count():
        if ending.is_set():
            return
        data, _ = caller.call("GET", "/main/agent/tasks?page=0&size=20", None, turn)
        if data is not None and data["totalElements"] < seen:
            wrong(f"a list had {seen} tasks and has {data['totalElements']} now")
        seen = data["totalElements"] if data else seen
        time.sleep(0.02)


# ── Another tenant, which guesses the ids of tasks ───────────────────────────────────────────────


def guess(name, *, finished):
    """Somebody of another tenant registers under a task id of this one. Until the upgrade is finished they
    get a task of another id, then one of their own; this tenant's stays as it is."""
    own, other = Caller("user1"), Caller("mallory", OTHER_TENANT)
    task = f"task_{uuid.uuid4().hex[:12]}"

    def register(caller, turn):
        body = {"requestId": f"req_{uuid.uuid4().hex[:12]}", "sessionId": f"guess_{run_id}_{uuid.uuid4().hex[:8]}",
                "actionType": "send_email", "context": {}, "taskId": task}
        caller.call("POST", "/aura/hitl/requests", body, turn, wanted=NEW)
        return body["requestId"]

    def row(tenant, request):
        found = rows(f"SELECT t.* FROM agent_task t JOIN hitl_request r USING (tenant_id, task_id) "
                     f"WHERE r.request_id = '{request}' AND r.tenant_id = '{tenant}'")
        return found[0] if len(found) == 1 else {}

    faults_here = []
    for turn in range(2):  # by each replica
        ours = register(own, turn)
        before = row(TENANT, ours)
        theirs = register(other, turn)
        took = row(OTHER_TENANT, theirs)
        if before.get("task_id") != task or (took.get("task_id") == task) != finished or not took:
            faults_here.append(f"{before}; {took}")
        other.call("POST", f"/aura/hitl/reject/{theirs}", {"userId": "mallory"}, turn)
        if row(OTHER_TENANT, theirs).get("status") != "FAILED" or row(TENANT, ours) != before:
            faults_here.append(f"{row(OTHER_TENANT, theirs)}; {row(TENANT, ours)}, not {before}")
        own.call("POST", f"/aura/hitl/approve/{ours}", {"userId": "user1"}, turn)
        if row(TENANT, ours).get("status") != "IN_PROGRESS":
            faults_here.append(f"{row(TENANT, ours)}")
        guesses.update((ours, theirs))
        task = f"task_{uuid.uuid4().hex[:12]}"
    check(f"{name}: another tenant that guesses a task's id touches nothing", "\n      ".join(faults_here))


# ── The rehearsal ────────────────────────────────────────────────────────────────────────────────


def phase(name, *, mixed=False):
    """So many decisions, and in a mixed one both ways across the releases."""
    start, ways = len(decided), {("old", "new"), ("new", "old")}

    def done():
        new = decided[start:]
        return faults or (len(new) >= arguments.decisions and (not mixed or ways <= {a.path for a in new}))

    until(done, 300)
    crossed = Counter(a.path for a in decided[start:])
    across = sum(crossed[way] for way in ways)
    fault = "\n      ".join(faults[:5]) or (None if done() else f"only {len(decided) - start} decisions, {dict(crossed)}")
    check(f"{name}: {len(decided) - start} decisions" + (f", {across} on the other release's requests" if mixed else ""), fault)
    if faults:
        raise SystemExit(f"{passed} passed, {failed} failed; logs are in {folder}")


def compare_migrations():
    theirs, ours = (
        {file.name: file.read_text() for file in folder.glob("migrations/postgres/*.sql")}
        for folder in (arguments.old_sources, Path())
    )
    # The export reads on a connection of its own, and prepares nothing for later; its statement was a
    # macro once.
    files = [file for file in arguments.old_sources.glob("src/ledger/*.rs") if file.name != "export.rs"]
    queries = "".join(file.read_text() for file in files)
    queries = re.sub(r"macro_rules! outcomes_between.*?\n}\n", "", queries, flags=re.S)
    reads_all = re.search(r"RETURNING \*|SELECT \* FROM (hitl_request|agent_task)", queries)
    changed = [name for name, text in theirs.items() if ours.get(name) != text]
    check("the older release's migrations are as they were", changed and f"changed or gone: {changed}")
    new = sorted(ours.keys() - theirs.keys())
    print(f"      new since then: {', '.join(new) or 'none; both releases have one schema'}")
    for name in new:
        found = migrations.faults(ours[name])
        if reads_all and (added := migrations.widened(ours[name])):
            found.append(f"adds columns to {', '.join(added)}, which the older release reads with *: "
                         "on Postgres its prepared statements would fail from then on")
        blocked = migrations.blocks_writes(ours[name])
        if blocked:
            found.append(f"builds an index on {', '.join(blocked)} without CONCURRENTLY: writes wait meanwhile")
        check(f"{name} is additive", found and "; ".join(found))


def rehearse():
    compare_migrations()
    done = command("old", "migrate")
    check("the old release's own schema", done.returncode and done.stderr)
    for replica in replicas:
        replica.start("old")
    ears.start()
    workers = [Session(n, "http" if n % 2 else "redis") for n in range(1, 9)]
    workers.append(threading.Thread(target=look_at_lists))
    for worker in workers:
        worker.start()
    try:
        phase("old and old")
        done = command("new", "migrate")
        check("the new release migrates, while the old one serves", done.returncode and done.stderr)
        phase("old and old on the new schema")
        guess("old and old on the new schema", finished=False)
        replicas[0].replace("new")
        phase("new and old", mixed=True)
        guess("new and old", finished=False)
        replicas[1].replace("new")
        phase("new and new")
        guess("new and new", finished=False)
        # What a later release may do to this one: statements that are prepared already must go on.
        for table in ("hitl_request", "agent_task"):
            sql(f"ALTER TABLE {table} ADD COLUMN of_a_later_release TEXT NOT NULL DEFAULT ''")
        phase("new and new, with columns of a later release")
        done = command("old", "migrate")
        check("back: the old release leaves the new schema alone", done.returncode and done.stderr)
        replicas[0].replace("old")
        phase("back: old and new", mixed=True)
        replicas[1].replace("old")
        phase("back: old and old on the new schema")
        replicas[0].replace("new")
        phase("forward again: new and old", mixed=True)
        replicas[1].replace("new")
        # As a purge of the old release leaves it.
        ours = "SELECT task_id FROM agent_task WHERE status = 'COMPLETED' LIMIT 1"
        sql(f"INSERT INTO owned_task {ours}; INSERT INTO owned_task SELECT 'of no task'")
        done = command("new", "migrate", "--finish")
        check("the upgrade is finished, while the new release serves", done.returncode and done.stderr)
        keys = {table: sql("SELECT pg_get_constraintdef(oid) FROM pg_constraint "
                           f"WHERE conrelid = '{table}'::regclass AND contype = 'p'")
                for table in ("hitl_request", "agent_task", "owned_task")}
        wanted = {table: f"PRIMARY KEY (tenant_id, {column})" for table, column in
                  (("hitl_request", "request_id"), ("agent_task", "task_id"), ("owned_task", "task_id"))}
        check("ids are each tenant's own from then on", keys != wanted and f"{keys}")
        owners = sql("SELECT string_agg(tenant_id, ',') FROM owned_task")
        check("what an older release's purge remembered has its tenant", owners != TENANT and owners)
        phase("new and new, finished")
        guess("new and new, finished", finished=True)
    finally:
        ending.set()
        for worker in workers:
            worker.join()


def settle():
    open_rows = """SELECT (SELECT count(*) FROM hitl_delivery WHERE delivery = 'owed')
                        + (SELECT count(*) FROM hitl_request WHERE status = 'pending')"""
    until(lambda: sql(open_rows) == "0")
    check("nothing is owed, nothing is pending", None if sql(open_rows) == "0" else f"{sql(open_rows)} rows")
    check("every answer was as it should be", "\n      ".join(faults[:10]))

    found = {row["request_id"]: row for row in rows("SELECT * FROM hitl_request") if row["request_id"] not in guesses}
    for delivery in rows("SELECT * FROM hitl_delivery"):
        found.get(delivery["request_id"], {}).update(delivery)
    lost = [a.id for a in decided if a.id not in found]
    check(f"{len(decided)} decisions acknowledged, none lost", lost and f"lost: {lost[:5]}")
    more = found.keys() - {a.id for a in decided} - set(expiring)
    check("no row that nobody asked for", more and f"{sorted(more)[:5]}")
    differ = [
        (a.id, found[a.id]) for a in decided if a.id in found and
        (found[a.id]["status"], found[a.id]["decided_by"], found[a.id]["delivery"], found[a.id]["reason"])
        != (a.status, a.user, "sent", a.data().get("reason"))
    ]
    check("every row says what was answered", differ and f"{len(differ)} differ: {differ[0]}")

    signals = {a.id: ears.heard.pop((a.session, a.id), []) for a in decided}
    written = [a for a in decided if a.kind == "redis"]
    bad = [(a.id, signals[a.id]) for a in written if not signals[a.id] or not all(map(a.is_signal, signals[a.id]))]
    check("every agent on Redis heard its signal, in the contract's words", bad and f"{len(bad)}: {bad[0]}")
    said = [(a.id, signals[a.id]) for a in decided
            if a.kind == "http" and a.path == ("new", "new") and signals[a.id]]
    check("nothing was said of what the new release registered and decided", said and f"{len(said)}: {said[0]}")
    doubled = [(a.id, signals[a.id]) for a in written if len(signals[a.id]) > 1]
    check("no signal was heard twice", doubled and f"{len(doubled)}: {doubled[0]}")
    check("nothing else was heard", ears.heard and f"{len(ears.heard)}: {list(ears.heard)[:3]}")

    tasks = {row["task_id"]: row for row in rows(f"SELECT * FROM agent_task WHERE tenant_id = '{TENANT}'")}
    wrong_tasks = []
    for asked in decided:
        task = tasks.get(found[asked.id]["task_id"], {})
        refused = f"Rejected by {asked.user}: {asked.data().get('reason')}"
        status = "COMPLETED" if asked.task else "IN_PROGRESS" if asked.verb == "approve" else "FAILED"
        says = None if asked.verb == "approve" else refused
        if (task.get("status"), task.get("error_message"), task.get("hitl_request_id")) != (status, says, asked.id):
            wrong_tasks.append((asked.id, asked.kind, asked.verb, task))
    check("every decision has its task, as it should be", wrong_tasks and f"{len(wrong_tasks)}: {wrong_tasks[0]}")
    rest = [i for i in expiring if (found[i]["status"], tasks[found[i]["task_id"]]["status"]) != ("expired", "FAILED")]
    check(f"{len(expiring)} requests that nobody decided have expired", rest and f"not {rest[:3]}")
    gaps = rows(
        "SELECT session_id FROM hitl_request GROUP BY tenant_id, session_id "
        "HAVING min(outcome) <> 1 OR max(outcome) <> count(*) OR count(outcome) <> count(*)"
    )
    check("outcomes of every session are numbered without a gap", gaps and f"{gaps[:3]}")


def main():
    sql(f"CREATE DATABASE {database}", os.environ["TEST_DATABASE_URL"])
    started = time.monotonic()
    try:
        rehearse()
        settle()
        codes = [replica.stop() for replica in replicas]
        check("both stop by themselves", any(codes) and f"exit {codes}")
    finally:
        for replica in replicas:
            if replica.process and replica.process.poll() is None:
                replica.process.kill()
                replica.process.wait()
        sql(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)", os.environ["TEST_DATABASE_URL"])
    slowest = max(replica.longest_stop for replica in replicas)
    times = sorted(a.decided_at for a in decided)
    pause = max(later - earlier for earlier, later in itertools.pairwise(times))
    print(f"{tally['calls']} calls answered; {tally['refused']} refused and {tally['broken off']} broken off by a replica "
          f"that was being replaced, and taken by the other; "
          f"{tally['answers to waiting agents']} agents waited over HTTP; slowest stop {slowest:.2f} s; "
          f"longest pause between two decisions {pause:.2f} s; {time.monotonic() - started:.0f} s in all")
    print(f"{passed} passed, {failed} failed" + (f"; logs are in {folder}" if failed else ""))
    if not failed:
        shutil.rmtree(folder)
    sys.exit(1 if failed else 0)


main()
