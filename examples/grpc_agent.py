"""A bring-your-own agent by gRPC in a few lines: says back what it hears; the key 9 ends the call.

Give an assistant `agent = "grpc"` and `url = "grpc://127.0.0.1:8770"`, run this, and dial it. Needs `pip install grpcio grpcio-tools`.
"""

import concurrent.futures
import pathlib
import sys

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "proto" / "api"))
messages, services = grpc.protos_and_services("tandem/agent/v1/agent.proto")


class Echo(services.AgentServicer):
    def Call(self, requests, context):
        yield messages.FromAgent(accepted=messages.Accepted())
        for request in requests:
            what = request.WhichOneof("what")
            if what == "audio":  # 20 ms of the caller: 16 kHz, 16 bit
                yield messages.FromAgent(audio=request.audio)
            elif what == "dtmf" and request.dtmf.digit == "9":
                yield messages.FromAgent(hangup=messages.Hangup())
            else:
                print(request, file=sys.stderr)


def main():
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(max_workers=16))  # a call takes one
    services.add_AgentServicer_to_server(Echo(), server)
    host, _, port = (sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8770").rpartition(":")
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    print(f"listening on grpc://{host}:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
