"""PJSIP as a phone: registers, calls, waits for the answer, hangs up, goes away. The one stack among the peers that answers
a SHA-256 challenge (RFC 8760).

    call.py SERVER USER PASSWORD TARGET

SERVER is host:port, TARGET the user part that is called. Prints a line for each step, `done` at the end, or why not.
"""
import os
import sys
import time

import pjsua2

PATIENCE_S = 20


class Account(pjsua2.Account):
    status = 0

    def onRegState(self, prm):
        self.status = prm.code


def ends(code, line):
    """Ends at once: the library's own end wants every object gone first, in an order that Python does not promise."""
    print(line, flush=True)
    os._exit(code)


def until(endpoint, what, so):
    """Runs the endpoint until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not so():
        if time.monotonic() > end:
            ends(1, f"failed: not within {PATIENCE_S} s: {what}")
        endpoint.libHandleEvents(20)


def main():
    server, user, password, target = sys.argv[1:]
    endpoint = pjsua2.Endpoint()
    endpoint.libCreate()
    config = pjsua2.EpConfig()
    config.uaConfig.threadCnt = 0
    config.uaConfig.mainThreadOnly = True
    config.logConfig.level = config.logConfig.consoleLevel = 0
    endpoint.libInit(config)
    endpoint.audDevManager().setNullDev()
    transport = pjsua2.TransportConfig()
    transport.boundAddress = "127.0.0.1"
    endpoint.transportCreate(pjsua2.PJSIP_TRANSPORT_UDP, transport)
    endpoint.libStart()

    settings = pjsua2.AccountConfig()
    settings.idUri = f"sip:{user}@{server}"
    settings.regConfig.registrarUri = f"sip:{server}"
    settings.sipConfig.authCreds.append(pjsua2.AuthCredInfo("digest", "*", user, 0, password))
    account = Account()
    account.create(settings)
    until(endpoint, "an answer to REGISTER", lambda: account.status)
    if account.status != 200:
        ends(1, f"failed: REGISTER was answered with {account.status}")
    print("registered", flush=True)

    call = pjsua2.Call(account)
    call.makeCall(f"sip:{target}@{server}", pjsua2.CallOpParam(True))
    answered = pjsua2.PJSIP_INV_STATE_CONFIRMED
    until(endpoint, "the answer", lambda: not call.isActive() or call.getInfo().state == answered)
    if not call.isActive():
        ends(1, "failed: INVITE was refused")
    print("answered", flush=True)
    call.hangup(pjsua2.CallOpParam())
    until(endpoint, "the end of the call", lambda: not call.isActive())
    account.status = 0
    account.setRegistration(False)
    until(endpoint, "an answer to the last REGISTER", lambda: account.status)
    ends(0, "done")


main()
