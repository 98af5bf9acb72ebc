# The demo on a server of your own; demo/README.md says how to build and start it.
FROM python:3.12-slim
RUN useradd --create-home --uid 1000 demo && install --directory --owner demo /data
WORKDIR /app
# For a server without a GPU: --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
COPY requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt glin-profanity==4.1.0 mcp==2.3.0
COPY app.py .
COPY demo demo
COPY human_eval human_eval
COPY turbo turbo
USER demo
ENV T2V_HOST=0.0.0.0 T2V_PORT=7860 T2V_DATA_DIR=/data
ENV T2V_WEIGHTS_DIR=/data/weights HF_HOME=/data/huggingface MPLCONFIGDIR=/tmp
ENV GRADIO_ANALYTICS_ENABLED=False HF_HUB_DISABLE_TELEMETRY=1 PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m CMD ["python", "-c", \
  "from os import environ; from urllib.request import urlopen; \
  urlopen('http://127.0.0.1:' + environ['T2V_PORT'] + '/healthz', timeout=8)"]
CMD ["python", "app.py"]
