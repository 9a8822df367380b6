import json, sys, os, threading, time, datetime, http.server

sys.path.insert(0, "/opt/finetune")
run = json.load(open("/etc/finetune/run.json"))
stage = sys.argv[-1].capitalize()
args = run["model"]["chatTemplateArguments"]
seconds = float(args.get("seconds", 4))
from tests.unit.operator.builders import SECTIONS, Stage

now = lambda: datetime.datetime.now(datetime.timezone.utc).isoformat()
start = now()
t0 = time.time()


def doc():
    k = min(int((time.time() - t0) / seconds * 40), 40)
    return {
        "version": "1.0",
        "uid": run["job"]["uid"],
        "stage": stage,
        "attempt": run["attempt"],
        "activity": {"Prepare": "Quantizing", "Train": "Training", "Merge": "Merging"}[stage],
        "step": k,
        "totalSteps": 40,
        "loss": 2.0 - k / 40,
        "startTime": start,
        "heartbeatTime": now(),
    }


class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = json.dumps(doc()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(b)))
        self.end_headers()
        self.wfile.write(b)

    def log_message(self, *a):
        pass


port = run["telemetry"]["port"] + (3 if stage == "Train" else 0)
threading.Thread(
    target=http.server.ThreadingHTTPServer(("0.0.0.0", port), H).serve_forever, daemon=True
).start()
import signal


def term(*_):
    end("Interrupted", "Interrupted", 75)


def end(outcome, reason, code):
    r = {
        "version": "1.0",
        "uid": run["job"]["uid"],
        "stage": stage,
        "attempt": run["attempt"],
        "outcome": outcome,
        "startTime": start,
        "completionTime": now(),
        "peakMemoryBytes": 1000,
    }
    if outcome == "Succeeded":
        r.update(SECTIONS[Stage(stage)])
    else:
        r.update(reason=reason, message="stand-in " + reason, logTail=["a", "b"])
    open("/dev/termination-log", "w").write(json.dumps(r))
    print("ended", now(), flush=True)
    os._exit(code)


signal.signal(signal.SIGTERM, term)
print("workspace", os.listdir("/workspace"), os.access("/workspace", os.W_OK), flush=True)
while time.time() - t0 < seconds:
    time.sleep(0.05)
f = args.get("fail", "")
if f.startswith(stage + ":"):
    reason = f.split(":")[1]
    end("Failed", reason, 69 if reason == "InternalError" else 65)
end("Succeeded", "", 0)
