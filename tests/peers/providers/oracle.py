"""Signs and writes with the providers' own SDKs, for control-plane/tests/provider_sdks.rs.

One JSON object comes in on stdin, one goes out on stdout:

    in   key (path of an RSA key in PEM), token (a JWT of ours), ncco, call (documents of ours), now, twilio_token, ...
    out  requests (what each provider would send, signed by its SDK), documents (what its SDK would write), read (ours)
"""

import hashlib
import json
import random
import sys
from urllib.parse import unquote, urlencode

import jwt
import nacl.signing
import base64
from cryptography.hazmat.primitives import serialization
from plivo import plivoxml
from plivo.utils import signature_v3
from twilio.request_validator import RequestValidator
from twilio.twiml.voice_response import Connect, Dial, VoiceResponse
from vonage_jwt import verify_signature
from vonage_voice.models import CreateCallRequest
from vonage_voice.models.ncco import Connect as NccoConnect

VALUES = ["+14155550100", "Zoë Ünal & Co", "a=b&c", "", "100%", "it's", "日本", "a b", "x" * 200]


def fields(rng):
    names = rng.sample(["From", "To", "CallSid", "Body", "a", "B", "Called_1"], rng.randint(0, 6))
    return [(name, rng.choice(VALUES)) for name in names]


def twilio(rng, secret):
    """Forms, GETs and JSON bodies, with and without ports."""
    for n in range(60):
        port = rng.choice(["", ":443", ":8443"])
        query = rng.choice(["", "?x=1", "?name=ann%20lee&x=1", "?a=%2B1&b="])
        url = f"https://voice.example.test{port}/v1/{n}{query}"
        kind = rng.choice(["form", "get", "json"])
        validator = RequestValidator(secret)
        if kind == "json":
            body = json.dumps({"n": n, "é": rng.choice(VALUES)}, ensure_ascii=False)
            url += ("&" if query else "?") + "bodySHA256=" + hashlib.sha256(body.encode()).hexdigest()
            pairs = {}
        else:
            pairs = dict(fields(rng)) if kind == "form" else {}
            body = urlencode(pairs)
        # Their machines sign with the port or without it, whatever the URL says.
        spelt = url.replace(port, "", 1) if port and rng.random() < 0.5 else url
        signature = validator.compute_signature(spelt, pairs)
        if kind != "get":
            assert validator.validate(url, body if kind == "json" else pairs, signature)
        yield {"kind": kind, "url": url, "body": body, "headers": {"X-Twilio-Signature": signature}}
    for n in range(20):
        # A URL with a user and a password is signed as it is; what asks for it puts them into a header.
        user = rng.choice(["user:pass", "u:p%40ss", "user:", "u:a!b"])
        path = f"voice.example.test/v1/{n}?x=1"
        pairs = dict(fields(rng))
        signature = validator.compute_signature(f"https://{user}@{path}", pairs)
        basic = base64.b64encode(unquote(user).encode()).decode()
        yield {"kind": "form", "url": f"https://{path}", "body": urlencode(pairs),
               "headers": {"X-Twilio-Signature": signature, "Authorization": f"Basic {basic}"}}


def plivo(rng, secret):
    for n in range(60):
        query = rng.choice(["", "?b=2&a=1", "?name=ann%20lee&x=%2B1", "?a=2&a=1"])
        url = f"https://voice.example.test/plivo/{n}{query}"
        kind = rng.choice(["form", "get"])
        pairs = dict(fields(rng)) if kind == "form" else {}
        nonce = str(rng.randint(0, 10**20))
        if kind == "get":
            base = signature_v3.construct_get_url(url, {})
        else:
            base = signature_v3.construct_post_url(url, dict(pairs))
        signature = signature_v3.get_signature_v3(secret.encode(), base.decode(), nonce).decode()
        headers = {"X-Plivo-Signature-V3": f"AAAA,{signature}", "X-Plivo-Signature-V3-Nonce": nonce}
        yield {"kind": kind, "url": url, "body": urlencode(pairs), "headers": headers}


def vonage(rng, now, secret):
    for n in range(20):
        body = json.dumps({"uuid": f"u-{n}", "to": "14155550199", "from": rng.choice(VALUES)}, ensure_ascii=False)
        claims = {"iat": now, "jti": f"j-{n}", "iss": "Vonage", "api_key": "abcd1234", "application_id": "app"}
        claims["payload_hash"] = hashlib.sha256(body.encode()).hexdigest()
        token = jwt.encode(claims, secret, "HS256")
        assert verify_signature(token, secret)
        yield {"kind": "json", "url": f"https://voice.example.test/v/{n}", "body": body,
               "headers": {"Authorization": f"Bearer {token}"}}


def telnyx(rng, now):
    """PyNaCl is what Telnyx's SDK verifies with."""
    key = nacl.signing.SigningKey(bytes(range(32)))
    for n in range(20):
        body = json.dumps({"data": {"event_type": "x", "n": n, "text": rng.choice(VALUES)}}, ensure_ascii=False)
        signature = base64.b64encode(key.sign(f"{now}|".encode() + body.encode()).signature).decode()
        headers = {"telnyx-signature-ed25519": signature, "telnyx-timestamp": str(now)}
        yield {"kind": "json", "url": "https://voice.example.test/t", "body": body, "headers": headers}


def documents(plan):
    answer = VoiceResponse()
    connect = Connect()
    stream = connect.stream(url=plan["url"], status_callback=plan["callback"], status_callback_method="POST")
    stream.parameter(name="ctx", value=plan["ctx"])
    stream.parameter(name="q", value=plan["q"])
    answer.append(connect)
    transfer = VoiceResponse()
    dial = Dial(caller_id=plan["from"], timeout=25, action=plan["callback"])
    dial.number(plan["to"])
    transfer.append(dial)
    busy = VoiceResponse()
    busy.reject(reason="busy")
    said = VoiceResponse()
    said.say(plan["q"])
    said.hangup()
    plivo_answer = plivoxml.ResponseElement()
    plivo_answer.add(plivoxml.StreamElement(
        plan["url"], bidirectional=True, keepCallAlive=True, contentType="audio/x-mulaw;rate=8000",
        extraHeaders=f"ctx={plan['ctx']}", statusCallbackUrl=plan["callback"], statusCallbackMethod="POST"))
    return {
        "twilio_answer": str(answer), "twilio_transfer": str(transfer), "twilio_busy": str(busy),
        "twilio_said": str(said), "plivo_answer": plivo_answer.to_string(pretty=False),
    }


def by_their_names(action):
    """An action with the names that the models take; they write those of the wire."""
    endpoints = [{("contentType" if name == "content-type" else name): value for name, value in endpoint.items()}
                 for endpoint in action["endpoint"]]
    return {**action, "from_": action["from"], "endpoint": endpoints}


def main():
    given = json.load(sys.stdin)
    rng = random.Random(7)
    with open(given["key"], "rb") as file:
        public = serialization.load_pem_private_key(file.read(), None).public_key()
    # What we have signed and written, as their models understand it.
    claims = jwt.decode(given["token"], public, algorithms=["RS256"])
    ncco = [NccoConnect(**by_their_names(action)) for action in given["ncco"]]
    call = CreateCallRequest(**{**given["call"], "from_": given["call"]["from"], "ncco": ncco})
    dump = {"by_alias": True, "exclude_none": True}
    json.dump({
        "requests": {
            "twilio": list(twilio(rng, given["twilio_token"])),
            "plivo": list(plivo(rng, given["plivo_token"])),
            "vonage": list(vonage(rng, given["now"], given["vonage_secret"])),
            "telnyx": list(telnyx(rng, given["now"])),
        },
        "documents": documents(given["plan"]),
        "read": {"claims": claims, "call": call.model_dump(mode="json", **dump)},
    }, sys.stdout)


main()
