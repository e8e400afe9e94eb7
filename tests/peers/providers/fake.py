"""Places, reads and ends calls with the providers' official SDKs at our fakes of their APIs, for tests/src/provider/tests.rs.

One JSON object comes in on stdin, one goes out on stdout:

    in   for each of twilio, vonage, plivo: url (the fake's), account, secret; from, to
    out  for each: id, states that the SDK has read in order, and the SDK's error for a wrong secret

The SDKs are as they come; only where their requests go is changed, below them.
"""

import json
import re
import sys

import plivo
import requests.adapters
from twilio.base.exceptions import TwilioRestException
from twilio.rest import Client
from vonage_http_client import Auth, HttpClient
from vonage_voice import Voice
from vonage_voice.models import CreateCallRequest
from vonage_voice.models.ncco import Connect
from vonage_voice.models.connect_endpoints import WebsocketEndpoint

CALLBACK = "https://voice.example.test/v1/telephony/x/event/1"
genuine_send = requests.adapters.HTTPAdapter.send


def lead_to(base):
    def send(self, request, **more):
        request.url = re.sub(r"^https://[^/]+", base, request.url)
        return genuine_send(self, request, **more)

    requests.adapters.HTTPAdapter.send = send


def twilio(given, numbers):
    lead_to(given["url"])
    client = Client(given["account"], given["secret"])
    call = client.calls.create(
        to=numbers["to"], from_=numbers["from"], twiml="<Response><Hangup/></Response>", status_callback=CALLBACK,
        status_callback_event=["initiated", "ringing", "answered", "completed"], status_callback_method="POST",
        timeout=30, time_limit=60, machine_detection="Enable", async_amd="true", async_amd_status_callback=CALLBACK)
    read = client.calls(call.sid).fetch()
    assert (read.sid, read.to, read._from) == (call.sid, numbers["to"], numbers["from"])
    assert client.api.accounts(given["account"]).fetch().sid == given["account"]
    ended = client.calls(call.sid).update(status="completed")
    try:
        Client(given["account"], "wrong").calls(call.sid).fetch()
    except TwilioRestException as error:
        refusal = str(error.code)
    return {"id": call.sid, "states": [call.status, read.status, ended.status], "refusal": refusal}


def vonage(given, numbers):
    lead_to(given["url"])
    voice = Voice(HttpClient(Auth(application_id=given["account"], private_key=given["secret"])))
    plain = {name: number.lstrip("+") for name, number in numbers.items()}
    socket = WebsocketEndpoint(uri="wss://m.example.test/1", contentType="audio/l16;rate=16000", headers={"ctx": "1"})
    request = CreateCallRequest(
        to=[{"type": "phone", "number": plain["to"]}], from_={"type": "phone", "number": plain["from"]},
        ncco=[Connect(endpoint=[socket], from_=plain["from"])], event_url=[CALLBACK], event_method="POST",
        ringing_timer=30)
    call = voice.create_call(request)
    read = voice.get_call(call.uuid)
    assert read.to.number == plain["to"]
    voice.play_dtmf_into_call(call.uuid, "12#")
    voice.hangup(call.uuid)
    other = Voice(HttpClient(Auth(application_id="another", private_key=given["secret"])))
    try:
        other.get_call(call.uuid)
    except Exception as error:
        refusal = type(error).__name__
    return {"id": call.uuid, "states": [call.status, read.status], "refusal": refusal}


def plivo_(given, numbers):
    lead_to(given["url"])
    client = plivo.RestClient(given["account"], given["secret"])
    call = client.calls.create(
        from_=numbers["from"].lstrip("+"), to_=numbers["to"].lstrip("+"), answer_url=CALLBACK, answer_method="POST",
        ring_url=CALLBACK, hangup_url=CALLBACK, ring_timeout=30, time_limit=60)
    read = client.live_calls.get(call.request_uuid)
    client.calls.send_digits(call.request_uuid, "12#", leg="aleg")
    client.calls.delete(call.request_uuid)
    try:
        plivo.RestClient(given["account"], "wrong").live_calls.get(call.request_uuid)
    except plivo.exceptions.AuthenticationError as error:
        refusal = type(error).__name__
    return {"id": call.request_uuid, "states": [call.message, read.call_status], "refusal": refusal}


def main():
    given = json.load(sys.stdin)
    numbers = {"from": given["from"], "to": given["to"]}
    told = {name: place(given[name], numbers) for name, place in [("twilio", twilio), ("vonage", vonage), ("plivo", plivo_)]}
    json.dump(told, sys.stdout)


main()
