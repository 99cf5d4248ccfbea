"""The Celery application.

Its queues: `clearing` for the rounds alone, `bytes` for what reads gigabytes and may take hours,
`celery` for all else.
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "marketplace.settings")

from celery import Celery
from django.conf import settings

app = Celery("gridloom")
app.conf.update(
    broker_url=settings.REDIS_URL,
    broker_connection_retry_on_startup=True,
    # A bell that can't ring must not keep a buyer waiting: beat rings it again soon.
    broker_transport_options={"socket_connect_timeout": 1, "socket_timeout": 5},
    broker_connection_timeout=1,
    task_publish_retry=False,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    timezone="UTC",
    worker_hijack_root_logger=False,
    worker_prefetch_multiplier=1,
    task_routes={
        "scheduler.tasks.clear_market": {"queue": "clearing"},
        "scheduler.tasks.judge_checkpoints": {"queue": "bytes"},
        "scheduler.tasks.fetch_bases": {"queue": "bytes"},
        "scheduler.tasks.check_datasets": {"queue": "bytes"},
        "scheduler.tasks.check_rounds": {"queue": "bytes"},
    },
    beat_schedule={
        "clear_market": {
            "task": "scheduler.tasks.clear_market",
            "schedule": settings.POLICY.round_s,
            "options": {"expires": settings.POLICY.round_s},
        },
        "settle": {
            "task": "scheduler.tasks.settle",
            "schedule": settings.POLICY.settle_s,
            "options": {"expires": settings.POLICY.settle_s},
        },
        "watch": {
            "task": "scheduler.tasks.watch",
            "schedule": settings.POLICY.watch_s,
            "options": {"expires": settings.POLICY.watch_s},
        },
        "judge_checkpoints": {
            "task": "scheduler.tasks.judge_checkpoints",
            "schedule": 15.0,
            "options": {"expires": 15.0},
        },
        "fetch_bases": {
            "task": "scheduler.tasks.fetch_bases",
            "schedule": 30.0,
            "options": {"expires": 30.0},
        },
        "check_datasets": {
            "task": "scheduler.tasks.check_datasets",
            "schedule": 30.0,
            "options": {"expires": 30.0},
        },
        "publish_rounds": {
            "task": "scheduler.tasks.publish_rounds",
            "schedule": 15.0,
            "options": {"expires": 15.0},
        },
        "check_rounds": {
            "task": "scheduler.tasks.check_rounds",
            "schedule": 60.0,
            "options": {"expires": 60.0},
        },
        "sweep_payments": {
            "task": "scheduler.tasks.sweep_payments",
            "schedule": 300.0,
            "options": {"expires": 300.0},
        },
    },
    beat_schedule_filename=os.environ.get("CELERY_BEAT_FILE", "celerybeat-schedule"),
)
app.autodiscover_tasks(["scheduler"])
